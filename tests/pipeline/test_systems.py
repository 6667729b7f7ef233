"""Every system of the LCM guides, ours against diffusers' own pipeline: equal weights, seed and timesteps, float32.

One table: a row says what is loaded here, and which pipeline is its twin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, LCMScheduler, T2IAdapter
from PIL import Image
from torch._dynamo.testing import CompileCounter

from pipeline import Controls, Lora, ModelSpec, load
from pipeline.batch import Batch
from pipeline.pixels.annotators import ANNOTATORS, Annotator, as_tensors
from pipeline.presets import TABLE
from pipeline.runtime.graphs import Graphs
from pipeline.settings import ControlNet
from tests import tiny
from tests.pipeline.calls import sharing_steps
from tests.pipeline.recorders import Recorder

PROMPT, NEGATIVE = "an oil painting of a cat", "blurry, grey"
SEED = 7
TOLERANCE = 2  # of 255
SIZES = ((96, 64), (64, 64))

WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "sd": tiny.checkpoint,
    "sd full": lambda folder: tiny.checkpoint(folder, guidance_embedding=True),
    "sd inpainting": lambda folder: tiny.checkpoint(folder, unet={**tiny.UNET, "in_channels": 9}),
    "xl": lambda folder: tiny.checkpoint(folder, unet=tiny.XL),
    "xl full": lambda folder: tiny.checkpoint(folder, unet=tiny.XL, guidance_embedding=True),
    "ssd": lambda folder: tiny.checkpoint(folder, unet=tiny.SSD),
    "sd lora": lambda folder: tiny.lora(folder, weights("sd")).parent,
    "sd style": lambda folder: tiny.lora(folder, weights("sd"), seed=5).parent,
    "xl lora": lambda folder: tiny.lora(folder, weights("xl")).parent,
    "xl style": lambda folder: tiny.lora(folder, weights("xl"), seed=5).parent,
    "ssd lora": lambda folder: tiny.lora(folder, weights("ssd")).parent,
    "inpainting lora": lambda folder: tiny.lora(folder, weights("sd inpainting")).parent,
    "sd canny": tiny.controlnet,
    "sd grey": lambda folder: tiny.controlnet(folder, seed=11),
    "xl canny": lambda folder: tiny.controlnet(folder, unet=tiny.XL),
    "sd adapter": tiny.adapter,
    "xl adapter": lambda folder: tiny.adapter(folder, sdxl=True),
}
ROOT: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    ROOT[:] = [tmp_path_factory.mktemp("systems")]
    yield
    weights.cache_clear()


@cache
def weights(name: str) -> Path:
    return WEIGHTS[name](ROOT[0] / name)


@dataclass(frozen=True)
class System:
    """base, loras, controls: names in WEIGHTS. task: text, image or mask. guidances: with the negative prompt above 1
    where it acts."""

    base: str
    twin: str
    task: str
    loras: dict[str, float] = field(default_factory=dict)
    nets: tuple[tuple[str, str, float], ...] = ()  # (weights, annotator, weight)
    adapter: str | None = None
    control: str = "canny"
    guidances: tuple[float, ...] = (1.0, 1.8)
    strengths: tuple[float, ...] = (0.5,)


CANNY, GREY = ("sd canny", "canny", 1.0), ("sd grey", "grey", 0.7)
SYSTEMS = {
    "LCM text to image, SD1.5": System("sd full", "LatentConsistencyModelPipeline", "text", guidances=(1.0, 8.0)),
    "LCM text to image, SDXL": System("xl full", "StableDiffusionXLPipeline", "text", guidances=(1.0, 8.0)),
    "LCM-LoRA text to image, SD1.5": System("sd", "StableDiffusionPipeline", "text", {"sd lora": 1.0}),
    "LCM-LoRA text to image, SDXL": System("xl", "StableDiffusionXLPipeline", "text", {"xl lora": 1.0}),
    "LCM-LoRA text to image, SSD-1B": System("ssd", "StableDiffusionXLPipeline", "text", {"ssd lora": 1.0}),
    "LCM-LoRA image to image, SDXL": System("xl", "StableDiffusionXLImg2ImgPipeline", "image", {"xl lora": 1.0}),
    "LCM-LoRA image to image, SSD-1B": System("ssd", "StableDiffusionXLImg2ImgPipeline", "image", {"ssd lora": 1.0}),
    "style LoRA beside the full LCM": System(
        "xl full", "StableDiffusionXLPipeline", "text", {"xl style": 0.8}, guidances=(8.0,)
    ),
    "LCM-LoRA and style LoRA": System("xl", "StableDiffusionXLPipeline", "text", {"xl lora": 1.0, "xl style": 0.8}),
    "inpainting UNet": System(
        "sd inpainting", "StableDiffusionInpaintPipeline", "mask", {"inpainting lora": 1.0},
        guidances=(1.0, 4.0), strengths=(0.5, 1.0),
    ),
    "inpainting with any UNet": System(
        "sd", "StableDiffusionInpaintPipeline", "mask", {"sd lora": 1.0}, guidances=(1.0, 4.0), strengths=(0.5, 1.0)
    ),
    "inpainting, SDXL": System(
        "xl", "StableDiffusionXLInpaintPipeline", "mask", {"xl lora": 1.0}, guidances=(1.0, 4.0), strengths=(0.5,)
    ),
    "ControlNet text to image": System(
        "sd", "StableDiffusionControlNetPipeline", "text", {"sd lora": 1.0}, (CANNY,), guidances=(1.0, 1.5)
    ),
    "ControlNet and the full LCM": System(
        "sd full", "StableDiffusionControlNetPipeline", "text", nets=(CANNY,), guidances=(1.0, 8.0)
    ),
    "two ControlNets": System(
        "sd", "StableDiffusionControlNetImg2ImgPipeline", "image", {"sd lora": 1.0}, (CANNY, GREY)
    ),
    "ControlNet, SDXL": System(
        "xl", "StableDiffusionXLControlNetPipeline", "text", {"xl lora": 1.0}, nets=(("xl canny", "canny", 1.0),)
    ),
    "T2I-Adapter, SD1.5": System("sd", "StableDiffusionAdapterPipeline", "text", adapter="sd adapter"),
    "T2I-Adapter, SDXL": System(
        "xl", "StableDiffusionXLAdapterPipeline", "text", {"xl lora": 1.0}, adapter="xl adapter", guidances=(1.0, 1.5)
    ),
    "T2I-Adapter, full SDXL, edges at 384": System(
        "xl full", "StableDiffusionXLAdapterPipeline", "text", adapter="xl adapter", control="canny-384",
        guidances=(5.0,),
    ),
    "ControlNet, inpainting and style LoRA": System(
        "sd inpainting", "StableDiffusionControlNetInpaintPipeline", "mask", {"inpainting lora": 0.8}, (CANNY,),
        guidances=(1.0, 2.0),
    ),
}  # fmt: skip
CASES = [
    pytest.param(system, steps, guidance, strength, SIZES[steps == 2], id=f"{name}-{steps}-{guidance}-{strength}")
    for name, system in SYSTEMS.items()
    for steps in (1, 2, 4)
    for guidance in system.guidances
    for strength in system.strengths
]


def pictures(width: int, height: int) -> np.ndarray:
    """Three different pictures with edges in them: uint8 [3, height, width, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    out = []
    for cx, cy, r in ((20, 20, 15), (50, 40, 20), (40, 32, 28)):
        disc = ((x - cx) ** 2 + (y - cy) ** 2 < r**2)[..., None]
        out.append(np.where(disc, rng.integers(120, 255, 3), rng.integers(0, 100, 3)) + (x // 8 % 2)[..., None] * 20)
    return np.stack(out).clip(0, 255).astype(np.uint8)


def masks(width: int, height: int) -> np.ndarray:
    """uint8 [3, height, width]: a half, a disc, all but a corner. Not along the latents' borders."""
    y, x = np.mgrid[:height, :width]
    shapes = [x > width * 0.45, (x - 40) ** 2 + (y - 30) ** 2 < 400, (x > 19) | (y > 13)]
    return np.stack(shapes).astype(np.uint8) * 255


@cache
def ours(system_name: str, size: tuple[int, int]):
    system = SYSTEMS[system_name]
    spec = ModelSpec(
        str(weights(system.base)),
        loras=tuple(
            Lora(str(weights(name)), weight, "lcm" if name.endswith("lora") else "style")
            for name, weight in system.loras.items()
        ),
        controlnet=tuple(ControlNet(str(weights(name)), control, weight) for name, control, weight in system.nets),
        adapter=system.adapter and str(weights(system.adapter)),
        control=system.control,
        width=size[0],
        height=size[1],
        dtype="float32",
    )
    return load(spec, "cpu", compile=False)


@cache
def twin(system_name: str):
    system = SYSTEMS[system_name]
    parts: dict[str, Any] = {}
    if system.nets:
        nets = [ControlNetModel.from_pretrained(weights(name)) for name, _, _ in system.nets]
        parts["controlnet"] = nets if len(nets) > 1 else nets[0]
    if system.adapter:
        parts["adapter"] = T2IAdapter.from_pretrained(weights(system.adapter))
    pipe = getattr(diffusers, system.twin).from_pretrained(weights(system.base), **parts)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    names = [name.replace(" ", "_") for name in system.loras]
    for name, adapter in zip(system.loras, names, strict=True):
        pipe.load_lora_weights(str(weights(name)), adapter_name=adapter)
    if names:
        pipe.set_adapters(names, list(system.loras.values()))
    return pipe


def control_image(name: str, frame: np.ndarray) -> Image.Image:
    pixels = torch.from_numpy(frame[None]).permute(0, 3, 1, 2)
    (image,) = ANNOTATORS[name](pixels, as_tensors([Controls()], pixels.device))
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def theirs(name: str, size, frames, mask, controls: Controls) -> np.ndarray:
    """Each picture alone, as whole grey levels."""
    system, pipe = SYSTEMS[name], twin(name)
    call: dict[str, Any] = {"prompt": PROMPT, "guidance_scale": controls.guidance, "output_type": "np"}
    if "LatentConsistency" not in system.twin:
        call["negative_prompt"] = controls.negative_prompt or None
    if system.task != "text" or "Adapter" not in system.twin:
        call |= {"width": size[0], "height": size[1]}
    if "XLImg2Img" in system.twin or system.twin == "StableDiffusionImg2ImgPipeline":
        del call["width"], call["height"]
    full = system.task == "text" or controls.strength == 1
    call["num_inference_steps"] = controls.steps if full else round(controls.steps / controls.strength)
    if system.task != "text":
        call["strength"] = controls.strength
    scale = controls.control_scale
    if system.nets:
        scales = [scale * weight for _, _, weight in system.nets]
        call["controlnet_conditioning_scale"] = scales if len(scales) > 1 else scales[0]
    if system.adapter:
        call["adapter_conditioning_scale"] = scale
    out = []
    for i, frame in enumerate(frames):
        seed = SEED + i if system.task == "text" else SEED
        own: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(seed)}
        if system.nets:
            images = [control_image(control, frame) for _, control, _ in system.nets]
            key = "image" if system.task == "text" else "control_image"
            own[key] = images if len(images) > 1 else images[0]
        if system.adapter:
            own["image"] = control_image(system.control, frame)
        if system.task != "text":
            own["image"] = Image.fromarray(frame)
        if system.task == "mask":
            own["mask_image"] = Image.fromarray(mask[i])
        out.append(np.round(pipe(**call, **own).images[0] * 255))
    return np.stack(out)


@pytest.mark.parametrize(("system", "steps", "guidance", "strength", "size"), CASES)
def test_equals_diffusers(system, steps, guidance, strength, size):
    name = next(name for name, row in SYSTEMS.items() if row is system)
    frames, mask = pictures(*size), masks(*size)
    stylizer = ours(name, size)
    uses_negative = guidance > 1 and not stylizer.capabilities.guidance_embedding
    controls = Controls(
        prompt=PROMPT,
        negative_prompt=NEGATIVE if uses_negative and steps != 1 else "",
        steps=steps,
        guidance=guidance,
        strength=strength,
        seed=SEED,
        control_scale=0.8,
    )
    if system.task == "text":
        needs_control = bool(system.nets or system.adapter)
        mine = stylizer.imagine(controls, count=3, control_frames=frames if needs_control else None)
    else:
        mine = stylizer(frames, controls, mask=mask if system.task == "mask" else None)
    other = theirs(name, size, frames, mask, controls)
    assert mine.dtype == np.uint8
    assert mine.shape == (3, size[1], size[0], 3)
    assert np.abs(mine - other).max() <= TOLERANCE
    assert other.std() > 5
    assert np.abs(other[0] - other[1]).max() > 10 * TOLERANCE


@pytest.mark.parametrize("name", [name for name, row in SYSTEMS.items() if row.nets or row.adapter])
def test_a_control_image_shows(name):
    """Else the equality above would prove nothing of it."""
    frames, stylizer = pictures(*SIZES[0]), ours(name, SIZES[0])
    controls = Controls(prompt=PROMPT, steps=2, seed=SEED, guidance=SYSTEMS[name].guidances[0])

    def painted(scale: float, control_frames: np.ndarray) -> np.ndarray:
        own = controls.merged({"control_scale": scale})
        if SYSTEMS[name].task == "text":
            return stylizer.imagine(own, count=3, control_frames=control_frames).astype(int)
        return stylizer(frames, own, control_frames=control_frames).astype(int)

    assert np.abs(painted(0.8, frames) - painted(0.0, frames)).max() > 5 * TOLERANCE
    assert np.abs(painted(0.8, frames) - painted(0.8, frames[:, :, ::-1].copy())).max() > 5 * TOLERANCE


def test_two_extras_share_a_control_image(monkeypatch):
    seen = []
    counting = Annotator(lambda pixels, controls: seen.append(len(pixels)) or pixels.float() / 255)
    monkeypatch.setitem(ANNOTATORS, "grey", counting)
    net = ControlNet(str(weights("sd grey")), "grey")
    stylizer = load(
        ModelSpec(str(weights("sd")), controlnet=(net, net), width=64, height=64, dtype="float32"), "cpu", compile=False
    )
    stylizer(pictures(64, 64), Controls(steps=2, guidance=1.5))
    assert seen == [3]  # once, for all frames


@pytest.mark.parametrize("name", [name for name, row in SYSTEMS.items() if row.task == "mask"])
def test_a_mask_shows(name):
    frames, mask, stylizer = pictures(*SIZES[0]), masks(*SIZES[0]), ours(name, SIZES[0])
    controls = Controls(prompt=PROMPT, steps=2, seed=SEED)
    painted = stylizer(frames, controls, mask=mask).astype(int)
    assert np.abs(painted - stylizer(frames, controls, mask=255 - mask)).max() > 5 * TOLERANCE
    everything = np.full_like(mask, 255)
    assert np.array_equal(stylizer(frames, controls), stylizer(frames, controls, mask=everything))


def test_what_does_not_fit_is_said():
    stylizer = ours("two ControlNets", SIZES[0])
    frames, mask = pictures(*SIZES[0]), masks(*SIZES[0])
    with pytest.raises(ValueError, match=r"mask must be uint8 \[3, 64, 96\], like the frames, not torch.uint8 \[2"):
        stylizer(frames, Controls(), mask=mask[:2])
    with pytest.raises(ValueError, match="mask must be uint8"):
        stylizer(frames, Controls(), mask=mask.astype(np.float32))
    with pytest.raises(ValueError, match="control_frames are needed"):
        stylizer.imagine(Controls())
    with pytest.raises(ValueError, match="control_frames are 3, and there are 2 pictures"):
        stylizer.imagine(Controls(), count=2, control_frames=frames)


SMALLEST_XL = {
    **tiny.XL,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1),
}


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def with_all_extras(request, tmp_path_factory):
    """(stylizer, what it is called with beside the frames), on a UNet of two blocks: tracing takes its time for every
    layer."""
    folder, masked = tmp_path_factory.mktemp("extras"), request.param == "SD1.5"
    unet = {**tiny.SMALLEST, "in_channels": 9} if masked else SMALLEST_XL
    base = tiny.checkpoint(folder / "base", unet=unet)
    parts = {
        "loras": (Lora(str(tiny.lora(folder / "lora", base)), name="lcm"),),
        "controlnet": str(tiny.controlnet(folder / "canny", unet={**unet, "in_channels": 4})),
        "adapter": str(tiny.adapter(folder / "adapter", sdxl=not masked)),
    }
    stylizer = load(ModelSpec(str(base), **parts, width=96, height=64, dtype="float32"), "cpu", compile=False)
    return stylizer, {"mask": masks(96, 64)} if masked else {}


def test_no_control_compiles_anything_anew(with_all_extras, monkeypatch):
    stylizer, of_a_mask = with_all_extras
    frames, counter = pictures(96, 64), CompileCounter()
    torch._dynamo.reset()
    painter = stylizer.sampler
    monkeypatch.setattr(painter, "denoise", torch.compile(painter.denoise, backend=counter, dynamic=False))
    compiled = []
    for guidance in (1.0, 1.5):  # CFG doubles the batch: the one difference in shape
        base = Controls(prompt=PROMPT, guidance=guidance, steps=2)
        changes = [{}, {"prompt": "another", "negative_prompt": "grey"}, {"strength": 0.8}, {"steps": 4}, {"seed": 9}]
        changes += [{"control_scale": 0.3}, {"canny_low": 30, "canny_high": 90}, {"guidance": guidance * 1.0}]
        changes += [{"lora_weights": {stylizer.loras[0]: 0.4}}]
        for change in changes:
            stylizer(frames, base.merged(change), **of_a_mask)
            compiled.append(counter.frame_count)
    assert compiled[0] > 0
    assert compiled == [compiled[0]] * 9 + [2 * compiled[0]] * 9


def test_a_captured_frame_replays(with_all_extras, monkeypatch):
    """As tests/pipeline/test_replayed.py, for other systems than SD1.5 with a ControlNet."""
    (stylizer, of_a_mask), recorder = with_all_extras, Recorder()
    plain, captured = stylizer.sampler, Graphs(stylizer.sampler, recorder)
    frames = pictures(96, 64)
    changes = [Controls(prompt=PROMPT), Controls(prompt=PROMPT), Controls(prompt="another", seed=3, strength=0.8)]
    for controls in [*changes, Controls(seed=4, guidance=1.0)]:
        monkeypatch.setattr(stylizer, "_paint", plain)
        expected = stylizer(frames, controls, **of_a_mask)
        monkeypatch.setattr(stylizer, "_paint", captured)
        assert np.array_equal(stylizer(frames, controls, **of_a_mask), expected)
        captured.capture_next(2)
    assert recorder.count == 1


SHARING = {  # guidance -> what else carries something of its own through the steps
    "LCM-LoRA image to image, SDXL": (1.8, None),
    "LCM text to image, SDXL": (8.0, None),
    "inpainting UNet": (1.0, "mask"),
    "inpainting with any UNet": (4.0, "mask"),
    "two ControlNets": (1.8, "control_frames"),
    "T2I-Adapter, SDXL": (1.0, "control_frames"),
}


@pytest.mark.parametrize("name", SHARING)
def test_frames_that_share_calls_at_different_steps_are_painted_as_alone(name):
    """What is turned in the middle holds for the frames behind it."""
    guidance, extra = SHARING[name]
    stylizer, size = ours(name, SIZES[1]), SIZES[1]
    turned = [{}, {"prompt": "another", "strength": 1.0}, {"seed": 9, "control_scale": 0.3}, {"strength": 0.9}]
    each = [Controls(prompt=PROMPT, steps=2, guidance=guidance).merged(change) for change in turned]
    frames = [pictures(*size)[i % 3 : i % 3 + 1] for i in range(len(each))]
    own = {"mask": masks(*size), "control_frames": pictures(*size)[:, ::-1].copy()}
    with_each = [{extra: own[extra][(i + 1) % 3][None]} if extra else {} for i in range(len(each))]
    alone = [stylizer(*pair, **more) for *pair, more in zip(frames, each, with_each, strict=True)]
    pendings = [
        sharing_steps(stylizer, frame, controls, **more)
        for frame, controls, more in zip(frames, each, with_each, strict=True)
    ]
    assert [pending.is_there() for pending in pendings] == [True] * (len(each) - 1) + [False]
    shared = [pending().rgb for pending in pendings]
    for one, other in zip(alone, shared, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # a batch's kernels may sum in another order
    assert np.abs(alone[0].astype(int) - alone[3]).max() > 5


@pytest.mark.parametrize(
    ("change", "masked"),
    [
        ({"steps": 3}, False),
        ({"guidance": 2.0}, False),
        ({"lora_weights": {"sd lora": 0.5}}, False),
        ({"reuse": 1}, False),
        ({}, True),
    ],
)
def test_frames_that_cannot_share_calls_have_those_under_way_finished_first(change, masked):
    name, size = "inpainting with any UNet", SIZES[0]
    stylizer, frames, controls = ours(name, size), pictures(*size)[:1], Controls(prompt=PROMPT, steps=2)
    if "lora_weights" in change:
        change = {"lora_weights": {stylizer.loras[0]: 0.5}}
    first = sharing_steps(stylizer, frames, controls)
    assert not first.is_there()
    own = {"mask": masks(*size)[:1]} if masked else {}
    other = sharing_steps(stylizer, frames[:, ::-1].copy(), controls.merged(change), **own)
    assert first.is_there()
    expected = stylizer(frames[:, ::-1].copy(), controls.merged(change), **own)
    assert np.abs(other().rgb.astype(int) - expected).max() <= 1
    assert np.abs(first().rgb.astype(int) - stylizer(frames, controls)).max() <= 1


def test_what_passes_through_leaves_those_under_way_alone():
    """A masked stream asks for its source beside each frame."""
    stylizer, size = ours("inpainting with any UNet", SIZES[0]), SIZES[0]
    frames, controls = pictures(*size)[:1], Controls(prompt=PROMPT, steps=2)
    first = sharing_steps(stylizer, frames, controls)
    source = stylizer.submit(Batch(frames, (controls.merged({"bypass": True}),)))
    assert not first.is_there()
    assert np.array_equal(source().rgb, stylizer(frames, controls.merged({"bypass": True})))
    assert np.abs(first().rgb.astype(int) - stylizer(frames, controls)).max() <= 1


def test_any_other_batch_has_those_under_way_finished_first():
    stylizer, size = ours("inpainting with any UNet", SIZES[0]), SIZES[0]
    frames, controls = pictures(*size)[:2], Controls(prompt=PROMPT, steps=2)
    alone = stylizer(frames[:1], controls)
    for other in (
        Batch(frames[1:], (controls,), streams=("a",)),
        Batch(frames, (controls,) * 2, streams=("a", "b"), behind=1),
        Batch(frames[1:], (controls,), streams=("b",), behind=1),
        Batch(None, (controls,), behind=1),
    ):
        stylizer.forget()
        first = sharing_steps(stylizer, frames[:1], controls)
        assert not first.is_there()
        stylizer.submit(other)
        assert first.is_there()
        assert np.abs(first().rgb.astype(int) - alone).max() <= 1


def test_what_cannot_be_painted_disturbs_nobody_under_way():
    stylizer, size = ours("inpainting with any UNet", SIZES[0]), SIZES[0]
    frames, controls = pictures(*size)[:1], Controls(prompt=PROMPT, steps=2)
    first = sharing_steps(stylizer, frames, controls)
    with pytest.raises(ValueError, match="frames must be uint8"):
        sharing_steps(stylizer, frames.astype(np.float32), controls)
    assert not first.is_there()
    assert np.abs(first().rgb.astype(int) - stylizer(frames, controls)).max() <= 1


def test_how_deep_a_stream_may_go(monkeypatch):
    stylizer = ours("inpainting with any UNet", SIZES[0])
    monkeypatch.setattr(type(stylizer), "max_batch", 4)
    changes = [{}, {"steps": 4}, {"steps": 5}, {"reuse": 1}, {"bypass": True}, {"strength": 0.0}]
    assert [stylizer.depth(Controls(steps=2).merged(change)) for change in changes] == [2, 4, 1, 1, 1, 1]


def test_settings_without_effect_are_named():
    lora, full = ours("LCM-LoRA text to image, SDXL", SIZES[0]), ours("ControlNet and the full LCM", SIZES[0])
    assert lora.remarks(Controls(guidance=1.5, negative_prompt="blurry")) == {}
    assert set(lora.remarks(Controls(negative_prompt="blurry", control_scale=0.5, canny_low=3))) == {
        "negative_prompt", "control_scale", "canny_low",
    }  # fmt: skip
    assert set(full.remarks(Controls(negative_prompt="blurry", control_scale=0.5))) == {"negative_prompt"}
    assert full.remarks(Controls(guidance=8.0)) == {}


def test_a_doubtful_guidance_is_named():
    def doubtful(name: str, guidance: float) -> bool:
        return "guidance" in ours(name, SIZES[0]).remarks(Controls(guidance=guidance))

    lora, full = "LCM-LoRA text to image, SDXL", "LCM text to image, SDXL"
    assert [doubtful(lora, guidance) for guidance in (1, 2, 2.5)] == [False, False, True]
    assert [doubtful(full, guidance) for guidance in (1, 2.5, 3, 13)] == [False, True, False, False]
    assert [doubtful("inpainting UNet", guidance) for guidance in (1, 4, 5)] == [False, False, True]
    assert not doubtful("ControlNet and the full LCM", 1.5)


PRESETS = {
    "mini": "LCM-LoRA text to image, SD1.5",
    "mini-canny": "ControlNet text to image",
    "sd15": "LCM-LoRA text to image, SD1.5",
    "sd15-canny": "ControlNet text to image",
    "lcm-dreamshaper": "LCM text to image, SD1.5",
    "lcm-dreamshaper-canny": "ControlNet and the full LCM",
    "sd15-inpainting": "inpainting UNet",
    "sdxl": "LCM-LoRA image to image, SDXL",
    "animagine": "LCM-LoRA image to image, SDXL",
    "ssd-1b": "LCM-LoRA image to image, SSD-1B",
    "lcm-sdxl": "LCM text to image, SDXL",
    "lcm-sdxl-papercut": "style LoRA beside the full LCM",
    "sdxl-canny-adapter": "T2I-Adapter, SDXL",
}


@pytest.mark.parametrize("preset", TABLE)
def test_a_preset_gives_no_cause_for_remarks(preset):
    stylizer = ours(PRESETS[preset], SIZES[0])
    spec, row = stylizer.spec, TABLE[preset]
    assert len(spec.loras) == len(row.spec.loras)
    assert ("lcm" in stylizer.loras) == any(lora.name == "lcm" for lora in row.spec.loras)
    assert len(spec.annotators) == len(row.spec.annotators)
    assert stylizer.remarks(row.defaults) == {}
