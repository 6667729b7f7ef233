"""What a CPU can prove of CUDA graphs: a frame's work, recorded once and replayed on fixed buffers, gives the same
pictures whatever a viewer turns; and there is nothing in it that a graph could not hold.

The recording here is torch.fx's: like a CUDA graph it keeps the operations of one run, and knows nothing of Python.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile

from pipeline import ControlNet, Controls, Lora, ModelSpec, load
from pipeline.graphs import FIRST_RUNS, MOST_GRAPHS, Graphs, leaves, rebuilt
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
    for _ in range(FIRST_RUNS):
        stylizer(FRAMES[0], base, mask=mask)
    assert recorder.count == 0
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
    for ours, expected in zip(painted()[1:], plain, strict=True):
        assert np.array_equal(ours, expected)
    assert recorder.count == 3  # to begin, two in flight, to finish; one alone in flight was too seldom
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(plain))


def test_each_shape_is_recorded_once_it_has_come_to_stay(stylizer, monkeypatch):
    """How the work is recorded plays no part here, and torch.fx takes seconds for each shape."""
    recorded = []

    def record(work):
        recorded.append(work)
        out = work()
        return (lambda: out.copy_(work())), out

    monkeypatch.setattr(stylizer, "_paint", Graphs(stylizer.painter, record))
    shapes = [{"steps": 1}, {"steps": 3}, {"steps": 1, "guidance": 2.0}]
    for _ in range(FIRST_RUNS + 2):
        for shape in shapes:
            stylizer(FRAMES[0], Controls(**shape))
        stylizer(FRAMES[0][:1], Controls(steps=1))
    assert len(recorded) == len(shapes) + 1
    stylizer(FRAMES[0], Controls(steps=4))
    assert len(recorded) == len(shapes) + 1


def test_results_are_not_overwritten_by_the_next(stylizer, recorder):
    frames = [torch.from_numpy(pair) for pair in FRAMES]
    shown = [stylizer(pair, Controls(steps=1)) for pair in frames]
    kept = [picture.clone() for picture in shown]
    stylizer(frames[3], Controls(steps=1, seed=4))
    assert recorder.count == 1
    assert all(torch.equal(a, b) for a, b in zip(shown, kept, strict=True))


def test_graphs_are_bounded_and_the_oldest_goes():
    recorded = []

    def record(work):
        out = work()
        recorded.append(out.shape)
        return (lambda: out.copy_(work())), out

    graphs = Graphs(lambda order: order[0] + 1, record)
    for size in range(1, MOST_GRAPHS + 2):
        for _ in range(FIRST_RUNS + 1):
            assert torch.equal(graphs((torch.zeros(size),)), torch.ones(size))
    assert len(recorded) == MOST_GRAPHS + 1
    graphs((torch.zeros(MOST_GRAPHS + 1),))
    for _ in range(FIRST_RUNS + 1):
        graphs((torch.zeros(1),))
    assert len(recorded) == MOST_GRAPHS + 2


def test_what_cannot_be_recorded_goes_on_without_and_says_so_once(caplog):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(lambda order: order[0] + 1, refuse)
    for _ in range(FIRST_RUNS + 3):
        assert graphs((torch.zeros(2),)).tolist() == [1, 1]
    assert [record.message for record in caplog.records] == [
        "This work cannot be recorded as a CUDA graph, it goes on without: "
        "operation not permitted when stream is capturing"
    ]


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
