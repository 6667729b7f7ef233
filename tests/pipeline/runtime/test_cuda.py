"""What a CPU can prove of CUDA: on a frame's whole way tensors of host and device never meet, nobody looks at a value,
nothing crosses over but the frame and its picture, and weights are multiplied in half precision.

The device is that of tests/fake_cuda.py, so there are no pictures. Canny is left to the tests of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import Controls, Lora, ModelSpec, load
from pipeline.batch import BATCHES
from pipeline.runtime.graphs import OFTEN
from pipeline.sampling.model import Components
from pipeline.settings import ControlNet
from pipeline.stylizer import Stylizer
from pipeline.usual_shapes import CAMERAS
from tests import fake_cuda, lora_files, tiny
from tests.pipeline.calls import sharing_steps, submitted

HEIGHT, WIDTH = 64, 128
FRAMES = np.zeros((2, 120, 160, 3), np.uint8)
I420 = np.zeros((2, 180, 160), np.uint8)
MASK = np.zeros((2, HEIGHT, WIDTH), np.uint8)
LIVE = Controls(prompt="a cat", steps=1)
HALF, BOTH = {torch.float16}, {torch.float16, torch.float32}


@dataclass(frozen=True)
class System:
    """made: its spec, of checkpoints written into a folder. dtypes: in which its weights are multiplied."""

    made: Callable[[Path], ModelSpec]
    dtypes: set[torch.dtype] = frozenset(HALF)


def with_loras(at: Path, **more: Any) -> ModelSpec:
    """One of the UNet, one of UNet and text encoders."""
    base = tiny.checkpoint(at / "base", unet=tiny.SMALLEST)
    return ModelSpec(
        str(base),
        loras=(
            Lora(str(tiny.lora(at / "ink", base)), name="ink"),
            Lora(str(lora_files.write(at / "text.safetensors", lora_files.factors(base), "peft")), name="text"),
        ),
        **more,
    )


def inpainting(at: Path) -> ModelSpec:
    base = tiny.checkpoint(at / "base", unet={**tiny.SMALLEST, "in_channels": 9})
    net = str(tiny.controlnet(at / "net", unet=tiny.SMALLEST))
    return ModelSpec(str(base), controlnet=tuple(ControlNet(net, name) for name in ("grey", "soft-edges", "tile")))


def sdxl(at: Path) -> ModelSpec:
    smallest = {name: tiny.SMALLEST[name] for name in ("block_out_channels", "layers_per_block")}
    unet = {
        **tiny.XL,
        **smallest,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
    }
    base, adapter = tiny.checkpoint(at / "base", unet=unet, kl=True), tiny.adapter(at / "adapter", sdxl=True)
    return ModelSpec(str(base), adapter=str(adapter), control="as-is")


SYSTEMS = {
    "LoRAs": System(with_loras),
    "low memory": System(lambda at: with_loras(at, low_memory=True)),
    "full LCM": System(
        lambda at: ModelSpec(str(tiny.checkpoint(at, unet=tiny.SMALLEST, guidance_embedding=True, kl=True)))
    ),
    "inpainting, ControlNets": System(inpainting),
    "SDXL, T2I-Adapter": System(sdxl, BOTH),  # its own VAE would overflow in half precision
}
CHANGES = (
    {"prompt": "a dog"},
    {"strength": 0.9},
    {"seed": 5},
    {"guidance": 1.7, "negative_prompt": "grey"},
    {"control_scale": 0.2},
    {"bypass": True},
)


@dataclass(frozen=True)
class Way:
    """start: of a stylizer, what paints the next frames. uploads: of each call."""

    start: Callable[[Stylizer], Callable[[], Any]]
    uploads: tuple[np.ndarray, ...] = (FRAMES,)
    captures: int = 2  # one of these fits the frames


def reusing(stylizer: Stylizer) -> Callable[[], Any]:
    return lambda: submitted(stylizer, FRAMES[:1], LIVE.merged({"reuse": 1}), streams=("a",))


def in_stages(stylizer: Stylizer) -> Callable[[], Any]:
    """The pictures of the frame before."""
    controls, waiting = LIVE.merged({"steps": 2}), []

    def paint() -> Any:
        waiting.append(sharing_steps(stylizer, FRAMES[:1], controls))
        if len(waiting) > 1:
            pending = waiting.pop(0)
            assert pending.is_there()
            return pending()
        return None

    return paint


TWO_STREAMS = [LIVE, LIVE.merged({"prompt": "a dog", "seed": 3})]
WAYS = {
    "frames": Way(lambda s: lambda: s(FRAMES, LIVE)),
    "two streams": Way(lambda s: lambda: s(FRAMES, TWO_STREAMS)),
    "guided": Way(lambda s: lambda: s(FRAMES, LIVE.merged({"guidance": 2.0}))),
    "masked": Way(lambda s: lambda: s(FRAMES, LIVE, mask=MASK), (FRAMES, MASK), 3),
    "smaller": Way(lambda s: lambda: s(FRAMES, LIVE, scale=0.5), captures=4),
    "live": Way(lambda s: lambda: submitted(s, FRAMES, TWO_STREAMS), captures=3),
    "live I420": Way(lambda s: lambda: submitted(s, I420, TWO_STREAMS), (I420,), 3),
    "stream batch": Way(in_stages, (FRAMES[:1],), captures=5),
    "reuse": Way(reusing, (FRAMES[:1],), captures=4),
    "imagine": Way(lambda s: lambda: s.imagine(LIVE), (), 1),
    "source": Way(lambda s: lambda: s(FRAMES, LIVE.merged({"bypass": True})), captures=1),
}


@pytest.fixture(scope="module")
def machine() -> fake_cuda.Machine:
    return fake_cuda.Machine()


@pytest.fixture(scope="module")
def model(machine, tmp_path_factory):
    """Of a system, the spec and the components on the device."""
    made = {}

    def model(name: str):
        if name not in made:
            spec = SYSTEMS[name].made(tmp_path_factory.mktemp("cuda"))
            spec = replace(spec, dtype="float16", width=WIDTH, height=HEIGHT)
            parts = load(spec, "cpu", compile=False).components
            made[name] = spec, machine.moved(parts, waiting(parts) if spec.low_memory else ())
        return made[name]

    return model


def waiting(parts: Components) -> Iterator[Tensor]:
    """What stays on the host with low_memory."""
    encoders = {weight for encoder in parts.text_encoders for weight in encoder.parameters()}
    yield from (*encoders, *parts.loras._pristine.values())
    for weight in encoders & parts.loras._patches.keys():
        for patch in parts.loras._patches[weight]:
            yield from (patch.up, patch.down)


@pytest.mark.parametrize("way", WAYS)
def test_only_frames_and_pictures_cross_over(way, machine, model, monkeypatch):
    expected = [each.shape for each in WAYS[way].uploads]
    spec, parts = model("LoRAs")
    with machine.running(monkeypatch) as traffic:
        stylizer = Stylizer(spec, parts)
        paint = WAYS[way].start(stylizer)
        for number in range(2 * OFTEN + 2):
            if number == 2 * OFTEN:
                assert traffic.captures == 0  # no call captures
                while stylizer.capture_next():
                    pass
                assert traffic.captures == WAYS[way].captures
            traffic.count_anew()
            pictures = paint()
            assert len(traffic.downloads) == (pictures is not None)
            if number > 0:  # the first makes what stays
                assert traffic.uploads == expected
        assert not traffic.products  # it replays
        assert traffic.captures == WAYS[way].captures


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_part_lies_where_it_is_used(system, machine, model, monkeypatch):
    spec, parts = model(system)
    with machine.running(monkeypatch) as traffic:
        stylizer = Stylizer(spec, parts)
        stylizer(FRAMES, LIVE)
        traffic.count_anew()
        stylizer(FRAMES, LIVE)
        assert traffic.uploads == [FRAMES.shape]
        assert traffic.products == SYSTEMS[system].dtypes
        stylizer.capture_calls()
        assert traffic.captures == 2 + len(spec.annotators)
        for change in (*CHANGES, *({"lora_weights": {name: 0.3}} for name in stylizer.loras)):
            assert stylizer(FRAMES, LIVE.merged(change)).shape == (2, HEIGHT, WIDTH, 3)
        stylizer(FRAMES, LIVE, mask=MASK)
        assert traffic.captures == 2 + len(spec.annotators)


AROUND = 12 + 4 + 2 + 2  # cameras, pictures in both ways, down and up again
USUAL = {
    "two steps": (LIVE.merged({"steps": 2, "guidance": 2.0}), 8 + 1 + 2 + 4 + AROUND),  # rungs, shared steps
    "reused, passed through": (LIVE.merged({"reuse": 2, "bypass": True, "strength": 0}), 2 * (8 + 2) + AROUND),
}


@pytest.mark.parametrize("usual", USUAL)
def test_what_a_server_will_be_asked_for_is_captured_before_it_is(usual, machine, model, monkeypatch):
    spec, parts = model("LoRAs")
    controls, count = USUAL[usual]
    told = []
    with machine.running(monkeypatch) as traffic:
        stylizer = Stylizer(spec, parts)
        stylizer.capture(controls, lambda detail, progress: told.append(progress))
        assert traffic.captures == count
        assert told == sorted(told)
        assert len(told) == count
        live = LIVE.merged({"steps": controls.steps, "reuse": controls.reuse})
        for size, guidance in itertools.product(BATCHES, (1.0, 1.7)):
            for width, height in CAMERAS:
                traffic.count_anew()
                frames = np.zeros((size, height * 3 // 2, width), np.uint8)
                each = [live.merged({"guidance": guidance, "seed": 4})] * size
                submitted(stylizer, frames, each, streams=tuple(range(size)))
                assert not traffic.products  # as it was captured
        assert traffic.captures == count
        assert not stylizer.capture_next()


def test_where_a_batch_does_not_fit_the_smaller_ones_are_captured(machine, model, monkeypatch, caplog):
    spec, parts = model("LoRAs")
    freed = []
    with machine.running(monkeypatch) as traffic:
        stylizer = Stylizer(spec, parts)
        monkeypatch.setattr(stylizer, "free_memory", lambda: freed.append(True))
        submit = stylizer.submit

        def scarce(batch):
            if len(batch.controls) == 8 and not batch.controls[0].bypass:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.")
            return submit(batch)

        monkeypatch.setattr(stylizer, "submit", scarce)
        stylizer.capture(LIVE, lambda detail, progress: None)
        assert traffic.captures == 6 + 2 + AROUND  # what passes through fits
    assert len(freed) == 2
    assert "CUDA out of memory" in caplog.text


FAULTS = {
    "a tensor left behind": lambda frame: frame + torch.zeros(3),
    "a number left behind": lambda frame: frame * torch.tensor(2.0),
    "a look at a value": lambda frame: frame if frame.max() > 0 else -frame,
    "a list of places": lambda frame: frame[frame > 0],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_such_faults_are_seen(fault, machine, monkeypatch):
    with machine.running(monkeypatch), torch.inference_mode():
        frame = torch.zeros(3).to(fake_cuda.DEVICE)
        with pytest.raises((AssertionError, RuntimeError)):
            FAULTS[fault](frame)


def test_an_upload_is_counted_and_kept_out_of_graphs(machine, monkeypatch):
    with machine.running(monkeypatch) as traffic, torch.inference_mode():
        torch.tensor([1.0, 2.0], device=fake_cuda.DEVICE)
        assert (traffic.uploads, traffic.downloads) == ([(2,)], [])
        with pytest.raises(AssertionError, match="graph"):
            traffic.capture(lambda: torch.tensor([1.0, 2.0], device=fake_cuda.DEVICE))
