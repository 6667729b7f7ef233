"""What a CPU can prove of CUDA graphs: a frame's work, recorded once and replayed on fixed buffers, gives the same
pictures whatever a viewer turns; and there is nothing in it that a graph could not hold.

The recording here is torch.fx's: like a CUDA graph it keeps the operations of one run, and knows nothing of Python.
"""

from __future__ import annotations

import itertools
import sys
import types
import weakref
from contextlib import contextmanager, nullcontext
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from pipeline import ControlNet, Controls, Lora, ModelSpec, load
from pipeline import stylizer as stylizers
from pipeline.errors import CaptureFailed
from pipeline.pixels import annotators, canny
from pipeline.pixels.conversions import Conversions
from pipeline.runtime import graphs as graphs_module
from pipeline.runtime.graphs import (
    MOST_GRAPHS,
    MOST_MET,
    OFTEN,
    Graphs,
    NeverWaiting,
    leaves,
    rebuilt,
    record_on_cuda,
    unless_it_waits,
)
from pipeline.stylizer import Stylizer
from tests import tiny

SIZE = (96, 64)
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 2, 64, 96, 3), np.uint8)
MASK = np.zeros((2, 64, 96), np.uint8)
MASK[:, :, 30:] = 255


class Recorder:
    """Records by torch.fx, counts how often."""

    def __init__(self):
        self.count = 0

    def __call__(self, work):
        self.count += 1
        trees = []
        operations = make_fx(lambda: list(leaves(trees.append(work()) or trees[0])))()
        out = operations()
        return (lambda: [kept.copy_(new) for kept, new in zip(out, operations(), strict=True)]), rebuilt(
            trees[0], iter(out)
        )


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
    monkeypatch.setattr(stylizer, "_paint", Graphs(stylizer.painter, recorder))
    return recorder


def recorded(graphs, given):
    """Graphs that have recorded what is given: it ran once as it is."""
    graphs(given)
    assert graphs.record_next(1)
    return graphs


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
    assert stylizer._paint.record_next(1)
    replayed = [stylizer(FRAMES[i], base.merged(change), mask=mask) for i, change in enumerate(LIVE)]
    two_streams = [base, base.merged({"prompt": "another", "seed": 9})]
    replayed.append(stylizer(FRAMES[7], two_streams, mask=mask))
    assert recorder.count == 1

    monkeypatch.setattr(stylizer, "_paint", stylizer.painter)
    plain = [stylizer(FRAMES[i], base.merged(change), mask=mask) for i, change in enumerate(LIVE)]
    plain.append(stylizer(FRAMES[7], two_streams, mask=mask))
    for ours, expected in zip(replayed, plain, strict=True):
        assert np.array_equal(ours, expected)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(plain))


def test_a_recorded_stream_batch_gives_the_same_pictures(stylizer, recorder, monkeypatch):
    """Of each part of a frame's way, and of each number of frames in flight, there is one recording."""
    each = [Controls(prompt="a cat", steps=2, guidance=1.7).merged(change) for change in LIVE[:-1]]

    def painted():
        batch = stylizer.stream_batch()
        return [*(batch(frames, one, mask=MASK) for frames, one in zip(FRAMES, each, strict=False)), batch()]

    nothing, *plain = painted()
    assert nothing is None
    for way, part in (("_begin", "begin"), ("_step", "step_together"), ("_finish", "finish")):
        monkeypatch.setattr(stylizer, way, Graphs(getattr(stylizer.painter, part), recorder))
    painted()
    for graphs in (stylizer._begin, stylizer._step, stylizer._finish):
        while graphs.record_next():
            pass
    assert recorder.count == 3  # to begin, two in flight, to finish; one alone in flight was too seldom
    for ours, expected in zip(painted()[1:], plain, strict=True):
        assert np.array_equal(ours, expected)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(plain))


def test_no_call_records_and_a_shape_that_has_come_to_stay_waits_for_its_moment(stylizer, monkeypatch):
    """How the work is recorded plays no part here, and torch.fx takes seconds for each shape."""
    recorded = []

    def record(work):
        recorded.append(work)
        return replayed(work)

    graphs = Graphs(stylizer.painter, record)
    monkeypatch.setattr(stylizer, "_paint", graphs)
    shapes = [{"steps": 1}, {"steps": 3}, {"steps": 1, "guidance": 2.0}]
    for _ in range(OFTEN):
        for shape in shapes:
            stylizer(FRAMES[0], Controls(**shape))
        assert not recorded
    stylizer(FRAMES[0][:1], Controls(steps=1))  # passes
    for count in range(1, len(shapes) + 1):
        assert graphs.record_next()
        assert len(recorded) == count
    assert not graphs.record_next()
    for shape in shapes:  # they are replayed, so nothing is left to record
        for _ in range(OFTEN):
            stylizer(FRAMES[0], Controls(**shape))
    assert not graphs.record_next()
    assert graphs.recorded == len(shapes)


def test_results_are_not_overwritten_by_the_next(stylizer, recorder):
    frames = [torch.from_numpy(pair) for pair in FRAMES]
    stylizer(frames[0], Controls(steps=1))
    assert stylizer._paint.record_next(1)
    shown = [stylizer(pair, Controls(steps=1)) for pair in frames]
    kept = [picture.clone() for picture in shown]
    stylizer(frames[3], Controls(steps=1, seed=4))
    assert recorder.count == 1
    assert all(torch.equal(a, b) for a, b in zip(shown, kept, strict=True))


def test_what_is_recorded_runs_on_memory_laid_out_as_a_copy_of_what_was_met():
    """Pixels are views, recipes of one stream are expanded: code may be made for their strides."""
    seen = []
    given = (torch.zeros(2, 8, 8, 3).permute(0, 3, 1, 2)[:, :, 1:5], torch.zeros(1, 3).expand(2, 3))
    graphs = recorded(Graphs(lambda order: seen.append(order) or order[0] + 1, replayed), given)
    for ours, expected in zip(seen[-1], given, strict=True):
        assert ours.stride() == torch.empty_like(expected).stride()
    assert torch.equal(graphs((given[0] + 3, given[1])), torch.full((2, 3, 4, 8), 4.0))


def test_graphs_are_bounded_and_the_oldest_goes():
    recorded = []

    def record(work):
        recorded.append(work)
        return replayed(work)

    graphs = Graphs(lambda order: order[0] + 1, record)
    for size in range(1, MOST_GRAPHS + 2):
        graphs((torch.zeros(size),))
        assert graphs.record_next(1)
        graphs((torch.zeros(size),))
    assert graphs.recorded == MOST_GRAPHS
    for size in (MOST_GRAPHS + 1, 1):  # the first one's has made room: it runs as it is
        assert torch.equal(graphs((torch.zeros(size),)), torch.ones(size))
    assert graphs.waiting(1) == 1
    assert graphs.record_next(1)
    assert len(recorded) == MOST_GRAPHS + 2


def test_what_was_not_replayed_yet_makes_no_room():
    graphs = Graphs(lambda order: order[0] + 1, replayed)
    for size in range(1, MOST_GRAPHS + 4):
        for _ in range(MOST_GRAPHS + 4 - size):  # the smaller, the more often
            graphs((torch.zeros(size),))
    while graphs.record_next(1, makes_room=False):
        pass
    assert (graphs.recorded, graphs.waiting(1)) == (MOST_GRAPHS, 3)
    assert not graphs.record_next(1), "nor when the device idles"
    graphs((torch.zeros(7),))
    assert not graphs.record_next(1, makes_room=False)
    assert graphs.record_next(1)
    graphs((torch.zeros(7),))
    assert (graphs.recorded, graphs.waiting(1)) == (MOST_GRAPHS, 3), "the one that was replayed has gone"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_recording_that_runs_out_of_memory_leaves_none_behind(error, monkeypatch):
    left, freed = [], []

    def record(work):
        half_done = torch.zeros(9)
        left.append(weakref.ref(half_done))
        raise error("it is no use")

    monkeypatch.setattr(graphs_module, "free_memory", lambda device: freed.append((str(device), left[-1]())))
    graphs = Graphs(lambda order: order[0] + 1, record)
    graphs((torch.zeros(2),))
    assert graphs.record_next(1)
    assert freed == ([("cpu", None)] if error is torch.OutOfMemoryError else [])


def test_word_of_shapes_is_bounded_and_takes_none_of_their_memory():
    graphs, refs = Graphs(lambda order: order[0] + 1, replayed), []
    for size in range(1, MOST_MET + 10):
        tensor = torch.zeros(size)
        refs.append(weakref.ref(tensor))
        graphs((tensor,))
    del tensor
    assert graphs.waiting(1) == MOST_MET
    assert not any(ref() is not None for ref in refs)


def test_a_shape_that_fails_is_not_recorded():
    def paint(order):
        raise torch.OutOfMemoryError("out of memory")

    graphs = Graphs(paint, lambda work: pytest.fail("was begun"))
    for _ in range(OFTEN):
        with pytest.raises(torch.OutOfMemoryError):
            graphs((torch.zeros(2),))
    assert not graphs.record_next()


def test_what_cannot_be_recorded_goes_on_without_and_says_so_once(caplog):
    def refuse(work):
        raise RuntimeError("max looks at a value")

    graphs = Graphs(lambda order: order[0] + 1, refuse)
    for _ in range(OFTEN + 3):
        assert graphs((torch.zeros(2),)).tolist() == [1, 1]
        graphs.record_next()
    assert [record.message for record in caplog.records] == [
        "This work cannot be recorded as a CUDA graph, it goes on without: max looks at a value"
    ]


def test_a_capture_that_breaks_off_is_no_such_case():
    def broken(work):
        raise CaptureFailed("Recording a CUDA graph broke off: operation not permitted.")

    graphs = Graphs(lambda order: order[0] + 1, broken)
    graphs((torch.zeros(2),))
    with pytest.raises(CaptureFailed):
        graphs.record_next(1)


class Capturing:
    """torch.cuda, as far as a recording goes. fails: (where, with what): in the work, where it begins or ends."""

    def __init__(self, monkeypatch, fails=None, allocator_goes_on=True):
        self.told, self.fails, self.capturing = [], dict([fails] if fails else []), False
        self.stream = MagicMock(device=torch.device("cuda", 1))
        for name, fake in {"CUDAGraph": MagicMock, "graph": self.graph, "stream": nullcontext}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())

        def end(*where):
            self.told.append(("end", *where))
            if not allocator_goes_on:
                raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        release = lambda *where: self.told.append(("release", *where))  # noqa: E731
        monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert (stream, capture_error_mode) == (self.stream, "thread_local")
        self.at("begin")
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
            self.at("end")

    def at(self, where):
        if where in self.fails:
            raise self.fails[where]

    def work(self):
        if self.capturing:
            self.at("work")
        return torch.zeros(2)


NOT_PERMITTED = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing")
ENDED = [("end", 1, (0, 7)), ("release", 1, (0, 7))]


@pytest.mark.parametrize("where", ["begin", "work", "end"])
def test_a_capture_that_breaks_off_is_ended_in_the_allocator_and_told(where, monkeypatch):
    cuda = Capturing(monkeypatch, (where, NOT_PERMITTED))
    with pytest.raises(CaptureFailed, match="operation not permitted"):
        record_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == ENDED


def test_an_allocator_that_ended_the_capture_itself_keeps_its_count(monkeypatch):
    cuda = Capturing(monkeypatch, ("end", NOT_PERMITTED), allocator_goes_on=False)
    with pytest.raises(CaptureFailed):
        record_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == ENDED[:1]


@pytest.mark.parametrize("where", [None, "work"])
def test_too_little_memory_breaks_no_capture_off(where, monkeypatch):
    cuda = Capturing(monkeypatch, where and (where, torch.OutOfMemoryError("CUDA out of memory")))
    if where is None:
        record_on_cuda(cuda.work, cuda.stream, (0, 7))
    else:
        with pytest.raises(torch.OutOfMemoryError):
            record_on_cuda(cuda.work, cuda.stream, (0, 7))
    assert cuda.told == []


def replayed(work):
    """Like a recording, but run again: for tests of what is recorded, not of how."""
    out = work()
    return (lambda: [kept.copy_(new) for kept, new in zip(leaves(out), leaves(work()), strict=True)]), out


def test_recorded_conversions_equal_plain_ones(stylizer):
    recorder = Recorder()
    plain = Conversions(stylizer.sizes, torch.float32, lambda way: way)
    recorded = Conversions(stylizer.sizes, torch.float32, lambda way: Graphs(way, recorder))
    dice = np.random.default_rng(1)

    def noise(*shape):
        return torch.from_numpy(dice.integers(0, 256, shape, np.uint8))

    cases = {
        "fitted_i420": lambda: noise(2, 180, 160),
        "fitted": lambda: noise(2, 120, 200, 3),
        "fitted_mask": lambda: noise(1, 120, 200),
        "enlarged": lambda: noise(2, 32, 48, 3),
        "in_both_ways": lambda: noise(2, 64, 96, 3),
    }
    for name, make in cases.items():
        graphs = {"enlarged": recorded._enlarged, "fitted": recorded._scaled}.get(name) or getattr(recorded, name)
        getattr(recorded, name)(make())
        assert graphs.record_next(1)
        for given in [make() for _ in range(2)]:
            assert torch.equal(getattr(recorded, name)(given), getattr(plain, name)(given)), name
    assert recorder.count == len(cases)
    assert plain.reduced.keys() == {0.75, 0.5}
    for scale, mask in ((0.75, None), (0.5, torch.ones(2, 1, 64, 96))):
        for _ in range(3):
            given = (noise(2, 3, 64, 96), noise(2, 3, 64, 96), mask)
            ours, expected = (list(leaves(each.reduced[scale](given))) for each in (recorded, plain))
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
            recorded.reduced[scale].record_next(1)
    assert recorder.count == len(cases) + 2


def test_frames_of_the_right_size_need_no_recording(stylizer):
    conversions = Conversions(stylizer.sizes, torch.float32, lambda way: pytest.fail)
    frames = torch.from_numpy(FRAMES[0])
    assert conversions.fitted(frames).data_ptr() == frames.data_ptr()
    assert conversions.enlarged(frames) is frames


def test_all_of_a_frames_way_is_recorded(stylizer, monkeypatch):
    """In and out of the engine, of video as it came, and what is between."""
    recorded = []

    def record(work):
        recorded.append(work)
        return replayed(work)

    monkeypatch.setattr(stylizers, "record_in_one_pool", lambda device: record)
    monkeypatch.setattr(annotators, "find_edges", lambda pixels, low, high: canny.ridges(pixels, low, high)[0])
    graphed = Stylizer(stylizer.spec, stylizer.components, graphs=True)
    plain = Stylizer(stylizer.spec, stylizer.components, graphs=False)
    came = np.random.default_rng(1).integers(16, 236, (4, 1, 180, 160), np.uint8)
    graphed.record_calls(lambda: graphed.live(came[0], Controls(prompt="a cat", steps=1)))
    assert len(recorded) == 4  # to RGB and fitted, the control image, painted, in both ways
    for i, frame in enumerate(came):
        controls = Controls(prompt="a cat", steps=1, canny_low=60 * i, canny_high=100, seed=i)
        for ours, expected in zip(graphed.live(frame, controls), plain.live(frame, controls), strict=True):
            assert np.array_equal(ours, expected)
    assert len(recorded) == 4
    assert not graphed.record_next()


def test_turned_thresholds_record_nothing_anew(monkeypatch):
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
        graphs.record_next(1)
        assert torch.equal(edges, annotated(given))
        seen.add(int(edges.sum()))
    assert recorder.count == 1
    assert len(seen) == len(FRAMES)


@pytest.mark.parametrize("name", sorted(annotators.ANNOTATORS))
def test_our_own_annotators_never_wait(name, monkeypatch):
    """Canny as on CUDA, but for the regions: here each pixel is one."""
    regions = types.SimpleNamespace(roots=lambda marked: torch.arange(marked.numel()).view_as(marked))
    monkeypatch.setitem(sys.modules, "pipeline.pixels.connected_components", regions)
    monkeypatch.setattr(canny, "_hysteresis_on", lambda device: canny.by_regions)
    monkeypatch.setattr(annotators, "find_edges", canny.canny_on_device)
    given = (
        torch.from_numpy(FRAMES[0]).permute(0, 3, 1, 2),
        annotators.as_tensors([Controls()] * 2, torch.device("cpu")),
    )
    with torch.inference_mode(), NeverWaiting():
        images = annotators.annotate(name, *given, torch.float16)
    assert images.any()


WAITING = {
    "a number is read": lambda given: given[0] * given[0].max().item(),
    "two pictures are compared": lambda given: given[0] + torch.equal(given[0], given[0]),
    "pixels are counted": lambda given: given[0] + len(given[0].nonzero()),
    "a mask selects": lambda given: given[0] + given[0][given[0] > 0].sum(),
    "a mask is filled": lambda given: given[0].clone().index_put_((given[0] > 2,), given[0][:2]),
}


@pytest.mark.parametrize("work", WAITING.values(), ids=WAITING)
def test_an_annotator_that_waits_goes_on_unrecorded_and_no_recording_is_begun(work, caplog):
    """A capture that the driver had to break off would leave PyTorch's allocator in it."""
    graphs = Graphs(work, unless_it_waits(lambda work: pytest.fail("was begun")))
    given = (torch.arange(1.0, 5.0),)
    for _ in range(OFTEN + 3):
        assert torch.equal(graphs(given), work(given))
        graphs.record_next()
    assert len(caplog.records) == 1
    assert "looks at a value" in caplog.text


def test_what_moves_between_host_and_device_counts_as_waiting(caplog):
    """The device here is the one without contents."""
    recorded = []

    def record(work):
        recorded.append(work)
        return replayed(work)

    given = (torch.zeros(2),)
    for work in (
        lambda given: given[0].to("meta"),
        lambda given: torch.empty(2, device="meta").copy_(given[0]),
        lambda given: given[0].to(torch.float64),
    ):
        graphs = Graphs(work, unless_it_waits(record))
        graphs(given)
        graphs.record_next(1)
    assert len(recorded) == 1
    assert [("between host and device" in record.message) for record in caplog.records] == [True, True]


@pytest.mark.parametrize("controls", [Controls(steps=2), Controls(steps=1, guidance=2.0)])
def test_a_frame_needs_no_look_at_a_value_and_keeps_no_memory(stylizer, controls):
    """A value read by the host would be a wait for the device; memory that stays would grow with every frame."""
    order = seen_order(stylizer, controls)
    stylizer.painter(order)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        out = stylizer.painter(order)
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
