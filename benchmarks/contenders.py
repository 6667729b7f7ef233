"""Who is measured? Each contender turns a setting into a call: uint8 frames in host memory in, the same out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from unittest.mock import patch

import cv2
import numpy as np
import torch
from diffusers import (
    LCMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from benchmarks.plan import Setting
from pipeline import Controls, compiling
from pipeline.loading.components import Components
from pipeline.stylizer import Stylizer

CFG_GUIDANCE = 1.5  # where the model's own setting has none

Call = Callable[[np.ndarray], np.ndarray]  # uint8 [batch, H, W, 3] -> the same


def applied(setting: Setting, controls: Controls) -> Controls:
    guidance = max(controls.guidance, CFG_GUIDANCE) if setting.cfg else min(controls.guidance, 1.0)
    return controls.model_copy(update={"steps": setting.steps, "guidance": guidance})


class Contender(ABC):
    """name: how its rows are called."""

    name: str

    @property
    def twin(self) -> Contender:
        """Who makes the same calls uncompiled: by those operations are counted."""
        return self

    def left_out(self, setting: Setting) -> str | None:
        """Why it has no row for a setting; None where it has one."""
        return None

    def delay(self, setting: Setting) -> int:
        """By how many frames its pictures come after the frames they are of."""
        return 0

    @abstractmethod
    def call(self, setting: Setting) -> Call:
        """What is timed and compared."""


class Ours(Contender):
    """Every kernel launched from Python."""

    name = "ours"

    def __init__(self, stylizer: Stylizer, controls: Controls):
        self._stylizer, self._controls = stylizer, controls

    def call(self, setting: Setting) -> Call:
        controls = applied(setting, self._controls)
        return lambda frames: self._stylizer(frames, controls)


class OursReplayed(Ours):
    """The same as CUDA graphs."""

    name = "ours, graphs"

    def __init__(self, ours: Ours):
        plain = ours._stylizer
        super().__init__(Stylizer(plain.spec, plain.components), ours._controls)
        self._ours = ours

    @property
    def twin(self) -> Contender:
        return self._ours

    def call(self, setting: Setting) -> Call:
        call, spec = super().call(setting), self._stylizer.spec
        frames = np.zeros((setting.batch, spec.height, spec.width, 3), np.uint8)
        self._stylizer.record_calls(lambda: call(frames))
        return call


class OursCompiled(OursReplayed):
    """With compiled code in these graphs (on a CPU, without). It compiles when it is first asked for a frame, and again
    when it is first asked for a batch."""

    name = "ours, compiled"

    def __init__(self, twin: Ours):
        super().__init__(twin)
        self._tried: set[bool] = set()

    def left_out(self, setting: Setting) -> str | None:
        """Raises LoadError where compiling fails."""
        batches = setting.batch > 1
        if batches not in self._tried:
            self._tried.add(batches)  # once, even if it fails
            started_s = time.perf_counter()
            compiling.compile_beside(
                self._stylizer, lambda detail, progress: print(detail, flush=True), compiling.at_once, batches
            )
            print(f"compiled in {time.perf_counter() - started_s:.0f} s", flush=True)
        if self._runs_uncompiled(setting):
            return f"it has no compiled code for batches of {setting.batch}, which run as uncompiled ones"
        return None

    def _runs_uncompiled(self, setting: Setting) -> bool:
        """Whether a call that is no replay runs the UNet's Python code."""
        spec, seen = self._stylizer.spec, []
        frames = np.zeros((setting.batch, spec.height, spec.width, 3), np.uint8)
        hook = self._stylizer.components.unet.register_forward_pre_hook(lambda module, args: seen.append(module))
        try:
            with patch.object(self._stylizer, "_paint", self._stylizer.painter):
                Ours.call(self, setting)(frames)
        finally:
            hook.remove()
        return bool(seen)


class OursStreamBatch(OursReplayed):
    """Frames at different steps in one call of the UNet; nothing comes out while it fills."""

    name = "ours, stream batch"

    def left_out(self, setting: Setting) -> str | None:
        return "with one step there is nothing to share" if setting.steps == 1 else None

    def delay(self, setting: Setting) -> int:
        return setting.steps - 1

    def call(self, setting: Setting) -> Call:
        controls, spec = applied(setting, self._controls), self._stylizer.spec
        batch, filling = self._stylizer.stream_batch(), self._stylizer.stream_batch()
        frames = np.zeros((setting.batch, spec.height, spec.width, 3), np.uint8)
        self._stylizer.record_calls(*[lambda: filling(frames, controls) for _ in range(setting.steps)])
        return lambda frames: batch(frames, controls)


class Diffusers(Contender):
    """diffusers' img2img pipeline as the LCM guides call it, on copies of the same weights in the guides' layout."""

    name = "diffusers img2img"
    STRENGTH = 0.5  # the last half of the timesteps: as many are asked for that as many steps run as ours

    def __init__(self, stylizer: Stylizer, controls: Controls):
        self._parts, self._controls = stylizer.components, controls
        self._generator = torch.Generator("cpu")
        self._nets = [deepcopy(module) for extra in self._parts.extras for module in extra.children()]
        self._pipe = None if self._unable else self._pipeline()

    @property
    def _unable(self) -> str | None:
        if self._parts.text_encoders[0].device != self._parts.device:
            return "its pipeline wants all modules on one device, and --low-memory keeps some off it"
        annotators = [getattr(extra, "annotator", None) for extra in self._parts.extras]
        if annotators not in ([], ["canny"]) or (annotators and self._parts.family.pooled):
            return "its guides' img2img has no pipeline for this model's extras"
        return None

    def left_out(self, setting: Setting) -> str | None:
        return self._unable

    def call(self, setting: Setting) -> Call:
        controls = applied(setting, self._controls)

        def call(frames: np.ndarray) -> np.ndarray:
            pictures = [Image.fromarray(frame) for frame in frames]
            joined = {}
            if self._nets:
                edges = [cv2.Canny(frame, controls.canny_low, controls.canny_high) for frame in frames]
                joined = {"control_image": [Image.fromarray(np.stack([edge] * 3, axis=2)) for edge in edges]}
                joined["controlnet_conditioning_scale"] = controls.control_scale
            painted = self._pipe(
                [controls.prompt] * len(frames),
                image=pictures,
                strength=self.STRENGTH,
                num_inference_steps=int(controls.steps / self.STRENGTH),
                guidance_scale=controls.guidance,
                negative_prompt=[controls.negative_prompt] * len(frames),
                generator=self._generator.manual_seed(controls.seed),
                **joined,
            )
            return np.stack([np.asarray(picture) for picture in painted.images])

        return call

    def _pipeline(self):
        parts = self._parts
        modules = {
            "vae": plain_copy(parts.vae),
            "unet": plain_copy(parts.unet),
            "text_encoder": parts.text_encoders[0],
            "tokenizer": parts.tokenizers[0],
            "scheduler": scheduler(parts),
        }
        if parts.family.pooled:
            second = {"text_encoder_2": parts.text_encoders[1], "tokenizer_2": parts.tokenizers[1]}
            pipe = StableDiffusionXLImg2ImgPipeline(**modules, **second, **parts.family.without)
        elif self._nets:
            pipe = StableDiffusionControlNetImg2ImgPipeline(
                **modules, controlnet=plain(self._nets[0]), **parts.family.without
            )
        else:
            pipe = StableDiffusionImg2ImgPipeline(**modules, **parts.family.without)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def plain(module: torch.nn.Module) -> torch.nn.Module:
    """In the memory layout that guides load it in."""
    return module.to(memory_format=torch.contiguous_format)


def plain_copy(module: torch.nn.Module) -> torch.nn.Module:
    return plain(deepcopy(module))


def scheduler(parts: Components) -> LCMScheduler:
    """The one that the guides set."""
    return LCMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type=parts.schedule.prediction,
    )
