"""Control images: of the frame's size, in range, by thresholds that may be turned; and which of them never wait."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from pipeline import Controls
from pipeline.pixels import annotators, canny
from pipeline.pixels.annotators import ANNOTATORS, as_tensors
from pipeline.runtime.graphs import Graphs
from tests import fake_cuda
from tests.pipeline.recorders import Recorder

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 2, 64, 96, 3), np.uint8)


@pytest.mark.parametrize("name", sorted(ANNOTATORS))
@pytest.mark.parametrize("size", [(96, 64), (63, 65)])
def test_annotators_keep_size_and_range(name, size):
    frames = pictures(*size)
    images = ANNOTATORS[name](frames, as_tensors([Controls()] * 2, frames.device))
    assert images.shape == frames.shape
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    alone = ANNOTATORS[name](frames[1:], as_tensors([Controls()], frames.device))
    assert torch.allclose(images[1:], alone, atol=1e-6)
    assert not torch.equal(images[:1], alone)


def pictures(width, height):
    """Two that differ, with something to see in each."""
    shapes = np.zeros((2, height, width, 3), np.uint8)
    shapes[0, 10:40, 12:50] = (200, 90, 30)
    shapes[1, 20:60, 5:30] = (20, 180, 250)
    noise = np.random.default_rng(3).integers(0, 20, shapes.shape, np.uint8)
    return torch.from_numpy(shapes + noise).permute(0, 3, 1, 2)


def test_turned_thresholds_capture_nothing_anew(monkeypatch):
    """Every stream's own, as contents of tensors. The hysteresis is left out: what a CPU has of it looks at values."""
    monkeypatch.setattr(annotators, "find_edges", lambda pixels, low, high: canny.ridges(pixels, low, high)[1])
    recorder = Recorder()

    def annotated(given):
        return annotators.annotate("canny", *given, torch.float32)

    graphs, seen = Graphs(annotated, recorder), set()
    for i, frames in enumerate(FRAMES):
        each = [Controls(canny_low=30 * i, canny_high=90), Controls(canny_low=200, canny_high=30 * i)]
        given = torch.from_numpy(frames).permute(0, 3, 1, 2), annotators.as_tensors(each, torch.device("cpu"))
        edges = graphs(given)
        graphs.capture_next(1)
        assert torch.equal(edges, annotated(given))
        seen.add(int(edges.sum()))
    assert recorder.count == 1
    assert len(seen) == len(FRAMES)


@pytest.mark.parametrize("name", sorted(annotators.ANNOTATORS))
def test_our_own_annotators_never_wait(name, monkeypatch):
    """Canny as on CUDA, but for the regions: here each pixel is one."""

    def roots(marked):
        return torch.arange(marked.numel(), device=marked.device).view_as(marked)

    monkeypatch.setitem(sys.modules, "pipeline.pixels.connected_components", types.SimpleNamespace(roots=roots))
    monkeypatch.setattr(canny, "_hysteresis_on", lambda device: canny.by_regions)
    monkeypatch.setattr(annotators, "find_edges", canny.canny_on_device)
    assert ANNOTATORS[name].capturable(torch.device("cuda", 0))
    machine = fake_cuda.Machine()
    with machine.running(monkeypatch) as traffic, torch.inference_mode():
        pixels = torch.zeros((2, 3, 64, 96), dtype=torch.uint8, device=fake_cuda.DEVICE)
        turned = {name: torch.full((2, 1, 1, 1), 90, device=fake_cuda.DEVICE) for name in annotators.CONTROLS}
        traffic.count_anew()
        _, images = traffic.capture(lambda: annotators.annotate(name, pixels, turned, torch.float16))
        assert images.shape == pixels.shape
        assert (traffic.uploads, traffic.downloads) == ([], [])


@pytest.mark.parametrize("find", [canny.by_growing, lambda strong, candidates: strong[strong]])
def test_the_device_there_tells_who_waits(find, monkeypatch):
    """Else the test above would prove nothing."""
    machine = fake_cuda.Machine()
    with machine.running(monkeypatch) as traffic, torch.inference_mode():
        marked = torch.zeros((2, 1, 64, 96), dtype=torch.bool, device=fake_cuda.DEVICE)
        with pytest.raises((AssertionError, RuntimeError)):
            traffic.capture(lambda: find(marked, marked))


def test_whoever_registers_an_annotator_says_whether_it_may_be_captured(monkeypatch):
    monkeypatch.setattr(annotators, "ANNOTATORS", {})
    asked = []
    annotators.annotator("a")(annotators.grey)
    annotators.annotator("b", capturable=True)(annotators.grey)
    annotators.annotator("c", capturable=lambda device: bool(asked.append(device)))(annotators.grey)
    cuda = torch.device("cuda", 1)
    assert [entry.capturable(cuda) for entry in annotators.ANNOTATORS.values()] == [False, True, False]
    assert asked == [cuda]


def test_where_edges_are_grown_canny_is_not_captured(monkeypatch):
    monkeypatch.setattr(canny, "_hysteresis_on", lambda device: canny.by_growing)
    for name in ("canny", "canny-384"):
        assert not ANNOTATORS[name].capturable(torch.device("cuda"))
