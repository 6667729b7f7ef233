"""What a CPU can prove of CUDA graphs: a frame's work, captured once and replayed on fixed buffers, gives the same
pictures whatever a viewer turns; and there is nothing in it that a graph could not hold.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline import Controls, Lora, ModelSpec, load
from pipeline import stylizer as stylizers
from pipeline.pixels import annotators, canny
from pipeline.runtime.graphs import OFTEN, Graphs
from pipeline.sampling.adapters import ControlNetExtra
from pipeline.settings import ControlNet
from pipeline.stylizer import Stylizer
from tests import tiny
from tests.pipeline.calls import sharing_steps, submitted
from tests.pipeline.recorders import Recorder, replayed

SIZE = (96, 64)
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 2, 64, 96, 3), np.uint8)
MASK = np.zeros((2, 64, 96), np.uint8)
MASK[:, :, 30:] = 255


@pytest.fixture(scope="module")
def stylizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    base = tiny.checkpoint(folder / "base", unet=tiny.SMALLEST)
    controlnet = tiny.controlnet(folder / "controlnet", unet=tiny.SMALLEST)
    spec = ModelSpec(
        str(base),
        loras=(Lora(str(tiny.lora(folder, base)), name="style"),),
        controlnet=ControlNet(str(controlnet), "canny"),
        width=SIZE[0],
        height=SIZE[1],
        dtype="float32",
    )
    return load(spec, "cpu", compile=False)


@pytest.fixture
def recorder(stylizer, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(stylizer, "_paint", Graphs(stylizer.sampler, recorder))
    return recorder


LIVE = [
    {},
    {"prompt": "an oil painting", "negative_prompt": "grey"},
    {"strength": 0.9},
    {"seed": 5},
    {"control_scale": 0.2},
    {"canny_low": 20, "canny_high": 60},
    {"lora_weights": {"style": 0.3}},
]


@pytest.mark.parametrize(("guidance", "mask"), [(1.0, None), (1.7, MASK)], ids=["plain", "guided and masked"])
def test_replayed_pictures_equal_plain_ones_whatever_is_turned(stylizer, recorder, guidance, mask, monkeypatch):
    base = Controls(prompt="a cat", steps=2, guidance=guidance)
    stylizer(FRAMES[0], base, mask=mask)
    assert recorder.count == 0
    assert stylizer._paint.capture_next(1)
    replayed = [stylizer(FRAMES[i], base.merged(change), mask=mask) for i, change in enumerate(LIVE)]
    two_streams = [base, base.merged({"prompt": "another", "seed": 9})]
    replayed.append(stylizer(FRAMES[7], two_streams, mask=mask))
    assert recorder.count == 1

    monkeypatch.setattr(stylizer, "_paint", stylizer.sampler)
    plain = [stylizer(FRAMES[i], base.merged(change), mask=mask) for i, change in enumerate(LIVE)]
    plain.append(stylizer(FRAMES[7], two_streams, mask=mask))
    for ours, expected in zip(replayed, plain, strict=True):
        assert np.array_equal(ours, expected)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(plain))


def test_a_captured_stream_batch_gives_the_same_pictures(stylizer, recorder, monkeypatch):
    """Of each part of a frame's way, and of each number of frames in flight, there is one capture."""
    each = [Controls(prompt="a cat", steps=2, guidance=1.7).merged(change) for change in LIVE[:-1]]

    def painted():
        pendings = [
            sharing_steps(stylizer, frames[:1], one, mask=MASK[:1]) for frames, one in zip(FRAMES, each, strict=False)
        ]
        assert [pending.is_there() for pending in pendings] == [True] * (len(each) - 1) + [False]
        return [pending().rgb for pending in pendings]

    plain = painted()
    batch = stylizer._stream_batch
    for way, part in (("_begin", "begin"), ("_step", "step_together"), ("_finish", "finish")):
        monkeypatch.setattr(batch, way, Graphs(getattr(stylizer.sampler, part), recorder))
    painted()
    for graphs in (batch._begin, batch._step, batch._finish):
        while graphs.capture_next():
            pass
    assert recorder.count == 3  # to begin, two in flight, to finish; one alone in flight was too seldom
    for ours, expected in zip(painted(), plain, strict=True):
        assert np.array_equal(ours, expected)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(plain))


def test_no_call_captures_and_a_shape_that_has_come_to_stay_waits_for_its_moment(stylizer, monkeypatch):
    """How the work is captured plays no part here, and torch.fx takes seconds for each shape."""
    captured = []

    def capture(work):
        captured.append(work)
        return replayed(work)

    graphs = Graphs(stylizer.sampler, capture)
    monkeypatch.setattr(stylizer, "_paint", graphs)
    shapes = [{"steps": 1}, {"steps": 3}, {"steps": 1, "guidance": 2.0}]
    for _ in range(OFTEN):
        for shape in shapes:
            stylizer(FRAMES[0], Controls(**shape))
        assert not captured
    stylizer(FRAMES[0][:1], Controls(steps=1))  # passes
    for count in range(1, len(shapes) + 1):
        assert graphs.capture_next()
        assert len(captured) == count
    assert not graphs.capture_next()
    for shape in shapes:  # they are replayed, so nothing is left to capture
        for _ in range(OFTEN):
            stylizer(FRAMES[0], Controls(**shape))
    assert not graphs.capture_next()
    assert graphs.captured == len(shapes)


def test_results_are_not_overwritten_by_the_next(stylizer, recorder):
    frames = [torch.from_numpy(pair) for pair in FRAMES]
    stylizer(frames[0], Controls(steps=1))
    assert stylizer._paint.capture_next(1)
    shown = [stylizer(pair, Controls(steps=1)) for pair in frames]
    kept = [picture.clone() for picture in shown]
    stylizer(frames[3], Controls(steps=1, seed=4))
    assert recorder.count == 1
    assert all(torch.equal(a, b) for a, b in zip(shown, kept, strict=True))


def test_all_of_a_frames_way_is_captured(stylizer, monkeypatch):
    """In and out of the engine, of video as it came, and what is between."""
    captured = []

    def capture(work):
        captured.append(work)
        return replayed(work)

    monkeypatch.setattr(stylizers, "capture_in_one_pool", lambda device: capture)
    monkeypatch.setattr(annotators, "find_edges", lambda pixels, low, high: canny.ridges(pixels, low, high)[0])
    as_on_cuda = replace(annotators.ANNOTATORS["canny"], capturable=lambda device: True)
    monkeypatch.setitem(annotators.ANNOTATORS, "canny", as_on_cuda)
    monkeypatch.setattr(Stylizer, "takes_i420", True)
    graphed = Stylizer(stylizer.spec, stylizer.components, graphs=True)
    plain = Stylizer(stylizer.spec, stylizer.components, graphs=False)
    came = np.random.default_rng(1).integers(16, 236, (4, 1, 180, 160), np.uint8)
    graphed.capture_calls(lambda: submitted(graphed, came[0], Controls(prompt="a cat", steps=1)))
    assert len(captured) == 4  # to RGB and fitted, the control image, painted, in both ways
    for i, frame in enumerate(came):
        controls = Controls(prompt="a cat", steps=1, canny_low=60 * i, canny_high=100, seed=i)
        ours, expected = (submitted(each, frame, controls) for each in (graphed, plain))
        assert np.array_equal(ours.rgb, expected.rgb)
        assert np.array_equal(ours.i420, expected.i420)
    assert len(captured) == 4
    assert not graphed.capture_next()


def test_only_annotators_that_may_be_captured_are_captured(stylizer, monkeypatch):
    """A capture that the driver had to break off would leave PyTorch's allocator in it; anybody's may wait."""
    seen = []
    monkeypatch.setattr(stylizers, "capture_in_one_pool", lambda device: replayed)
    annotators.annotator("anybody's")(lambda pixels, controls: seen.append(1) or annotators.grey(pixels, controls))
    annotators.annotator("ours", capturable=True)(
        lambda pixels, controls: seen.append(2) or annotators.grey(pixels, controls)
    )
    try:
        for name, captured in (("anybody's", False), ("ours", True)):
            net = replace(stylizer.spec.controlnet, control=name)
            spec = replace(stylizer.spec, controlnet=net)
            extras = [replace_annotator(extra, name) for extra in stylizer.components.extras]
            graphed = Stylizer(spec, replace(stylizer.components, extras=tuple(extras)), graphs=True)
            graphed.capture_calls(lambda graphed=graphed: graphed(FRAMES[0], Controls(steps=1)))
            assert sum(graphs.captured for graphs in graphed._all_graphs) == 1 + captured  # beside what paints
            assert isinstance(graphed._preparation._annotate[name], Graphs) is captured
            picture = graphed(FRAMES[0], Controls(steps=1))
            plain = Stylizer(spec, graphed.components, graphs=False)
            assert np.array_equal(picture, plain(FRAMES[0], Controls(steps=1)))
            assert seen
            seen.clear()
    finally:
        for name in ("anybody's", "ours"):
            del annotators.ANNOTATORS[name]


def replace_annotator(extra, name):
    return ControlNetExtra(extra.controlnet, name, extra.weight)


@pytest.mark.parametrize("controls", [Controls(steps=2), Controls(steps=1, guidance=2.0)])
def test_a_frame_needs_no_look_at_a_value_and_keeps_no_memory(stylizer, controls):
    """A value read by the host would be a wait for the device; memory that stays would grow with every frame."""
    order = seen_order(stylizer, controls)
    stylizer.sampler(order)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        out = stylizer.sampler(order)
    names = {event.key for event in traced.key_averages()}
    assert "aten::convolution" in names
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
    kept = sum(event.self_cpu_memory_usage for event in traced.key_averages())
    assert kept == out.nbytes


def seen_order(stylizer, controls):
    """What the painter is given for these controls."""
    orders = []
    stylizer._paint, plain = orders.append, stylizer._paint
    with pytest.raises(AttributeError):  # there is no picture
        stylizer(FRAMES[0], controls)
    stylizer._paint = plain
    return orders[0]
