"""StreamDiffusion 0.1.1 on our weights: an optional peer, `pip install --no-deps streamdiffusion==0.1.1`.

What is compared. Its stream batch runs one UNet call on the latents of the last N frames for N steps, where we run N
calls on one frame; so for each picture that comes out both spend N latents' worth of UNet, one encoding and one
decoding, and times are per picture. Its pictures come N - 1 frames late (the column `delay`) and its first N - 1 are
no pictures at all; neither is held against it. Its timesteps are ours, by `t_index_list`, and so is its noise: in
float32 its pictures equal ours. A setting with CFG runs its "full" guidance, which is ours, the UNet's batch doubled;
its own "self" guidance, which runs no second pass and gives other pictures, has rows of its own. Several frames at once
are its `frame_buffer_size`; of those it keeps one picture where there are several steps, so such rows are left out.

As it comes: what its README calls. A PIL picture in; out, `postprocess` of its `image_processor`, the operations of its
`image_utils`, which wants torchvision. UNet and autoencoder in their plain memory layout, PyTorch's attention where the
README takes xformers', no similar-frame filter. The prompt is encoded once, by `prepare`. Nothing of it is changed; on
a CPU its timing events, which exist on CUDA alone, are left away.

Compiled: torch.compile on its UNet, a graph for each of its batches, in the modes of the table below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from benchmarks.contenders import Call, Contender, applied, plain_copy, scheduler
from benchmarks.plan import Setting
from pipeline import Controls
from pipeline.sampling import lcm
from pipeline.stylizer import Stylizer

NAME = "StreamDiffusion"
MODES = {  # suffix -> torch.compile's mode
    ", compiled": "default",
    ", compiled, CUDA graphs": "reduce-overhead",
}
INDEX_STEPS = 50  # its `num_inference_steps`; of these `t_index_list` picks

Compile = Callable[[torch.nn.Module], torch.nn.Module]


def installed() -> bool:
    return importlib.util.find_spec("streamdiffusion") is not None


class StreamDiffusionPeer(Contender):
    """compile: what to do with its UNet; None is as it comes. guidance: its `cfg_type` in settings with CFG.
    like: another peer, whose copies of the weights it shares.
    """

    def __init__(
        self,
        stylizer: Stylizer,
        controls: Controls,
        *,
        compile: Compile | None = None,
        suffix: str = "",
        guidance: str = "full",
        like: StreamDiffusionPeer | None = None,
    ):
        self.name = NAME + (f" ({guidance} guidance)" if guidance != "full" else "") + suffix
        self._stylizer, self._parts, self._controls = stylizer, stylizer.components, controls
        self._guidance = guidance
        self._twin = like if compile is not None else None
        self._unet = self._vae = None
        if self._unable is None:
            self._unet = like._unet if like else plain_copy(self._parts.unet)
            self._vae = like._vae if like else plain_copy(self._parts.vae)
            if compile is not None:
                self._unet = compile(self._unet)

    @property
    def twin(self) -> Contender:
        return self._twin or self

    @property
    def _unable(self) -> str | None:
        parts = self._parts
        for cannot, what in (
            (not installed(), "it is not installed (pip install --no-deps streamdiffusion==0.1.1)"),
            (parts.family.pooled, "it calls no SDXL UNet"),
            (parts.extras, "it has no ControlNet, adapter or inpainting"),
            (parts.vae.config.latent_channels != 4, "it draws noise for latents of 4 channels only"),
            (self._stylizer.recipes.guidance_embedding_dim, "it gives a full LCM no guidance embedding"),
            (parts.schedule.prediction != "epsilon", "it knows no prediction but of the noise"),
        ):
            if cannot:
                return what
        return None

    def left_out(self, setting: Setting) -> str | None:
        if self._unable is not None:
            return self._unable
        if setting.batch > 1 and setting.steps > 1:
            return "of several frames at several steps it keeps one picture"
        if self._guidance != "full" and not setting.cfg:
            return "its guidance plays no part without CFG"
        return None

    def delay(self, setting: Setting) -> int:
        return setting.steps - 1

    def call(self, setting: Setting) -> Call:
        from streamdiffusion import StreamDiffusion
        from streamdiffusion import pipeline as theirs

        controls, spec, device = applied(setting, self._controls), self._stylizer.spec, self._stylizer.device
        if device.type != "cuda":
            theirs.torch = _without_events()
        run = lcm.timesteps(self._parts.schedule, setting.steps, controls.strength)
        stride = self._parts.schedule.train_steps // INDEX_STEPS
        stream = StreamDiffusion(
            self._pipe(),
            t_index_list=[INDEX_STEPS - (t + 1) // stride for t in run],
            torch_dtype=self._stylizer.dtype,
            width=spec.width,
            height=spec.height,
            frame_buffer_size=setting.batch,
            cfg_type=self._guidance if setting.cfg else "none",
        )
        stream.prepare(
            controls.prompt,
            controls.negative_prompt,
            num_inference_steps=INDEX_STEPS,
            guidance_scale=controls.guidance,
            generator=torch.Generator(),
            seed=controls.seed,
        )

        def call(frames: np.ndarray) -> np.ndarray:
            pictures = [Image.fromarray(frame) for frame in frames]
            painted = stream(pictures[0] if len(pictures) == 1 else pictures)
            shown = stream.image_processor.postprocess(painted, output_type="np")
            return (shown * 255).round().astype(np.uint8)

        return call

    def _pipe(self) -> SimpleNamespace:
        """As much of a diffusers pipeline as its constructor and `prepare` look at."""
        prompts = self._stylizer.recipes.prompts

        def encode_prompt(prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=""):
            return prompts(prompt).states, prompts.negative(negative_prompt).states

        return SimpleNamespace(
            device=self._stylizer.device,
            vae_scale_factor=self._stylizer.spec.height // self._stylizer.sizes.latents()[1],
            scheduler=scheduler(self._parts),
            text_encoder=self._parts.text_encoders[0],
            unet=self._unet,
            vae=self._vae,
            encode_prompt=encode_prompt,
        )


def peers(stylizer: Stylizer, controls: Controls, *, compiled: bool, everything: bool) -> list[Contender]:
    """As it comes, its own guidance, and compiled: `everything` in all modes."""
    plain = StreamDiffusionPeer(stylizer, controls)
    own = StreamDiffusionPeer(stylizer, controls, guidance="self", like=plain)
    modes = list(MODES.items())[: len(MODES) if everything else 1] if compiled else []
    return [plain, own] + [
        StreamDiffusionPeer(stylizer, controls, compile=_compiler(mode), suffix=suffix, like=plain)
        for suffix, mode in modes
    ]


def _compiler(mode: str) -> Compile:
    return lambda unet: torch.compile(unet, mode=mode, dynamic=False)


def _without_events() -> SimpleNamespace:
    """torch for its pipeline module on a device without CUDA's timing events, which it makes and reads each call."""

    class Event:
        def __init__(self, enable_timing: bool):
            pass

        def record(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 0.0

    return SimpleNamespace(**{**vars(torch), "cuda": SimpleNamespace(Event=Event, synchronize=lambda: None)})
