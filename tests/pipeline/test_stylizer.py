"""What a caller of the Stylizer relies on: shapes, kinds, fixed noise, batches that mix nothing."""

from __future__ import annotations

import gc
import weakref

import cv2
import numpy as np
import pytest
import torch

from pipeline import Controls, LoadError, ModelSpec, load
from pipeline.batch import Batch
from pipeline.pixels import color
from pipeline.stylizer import Stylizer
from tests import tiny
from tests.pipeline.calls import sharing_steps, submitted

rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def stylizer(tmp_path_factory):
    base = tiny.checkpoint(tmp_path_factory.mktemp("stylizer"))
    return load(ModelSpec(str(base), width=96, height=64, dtype="float32"), "cpu")


@pytest.fixture(scope="module")
def frames():
    return rng.integers(0, 256, (3, 120, 160, 3), np.uint8)


def test_any_size_in_the_models_size_out_and_the_same_kind(stylizer, frames):
    out = stylizer(frames, Controls())
    assert isinstance(out, np.ndarray)
    assert out.shape == (3, 64, 96, 3)
    assert out.dtype == np.uint8
    tensor = stylizer(torch.from_numpy(frames), Controls())
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), out)


@pytest.mark.parametrize("controls", [Controls(bypass=True), Controls(strength=0.0)])
def test_bypass_and_strength_zero_give_the_source_resized(stylizer, controls):
    y, x = np.mgrid[:64, :96]
    frame = np.stack([x * 2, y * 3, x + y], axis=-1).astype(np.uint8)[None]
    assert np.array_equal(stylizer(frame, controls), frame)
    assert stylizer(frame.repeat(2, 1).repeat(2, 2), controls).shape == frame.shape


def test_the_seed_fixes_the_noise_and_redraws_it(stylizer, frames):
    one = stylizer(frames, Controls(seed=1))
    assert np.array_equal(one, stylizer(frames, Controls(seed=1)))
    assert not np.array_equal(one, stylizer(frames, Controls(seed=2)))


def test_a_batch_gives_each_frame_what_it_gets_alone(stylizer, frames):
    """Prompts, seeds and strengths of several streams in one batch do not mix."""
    each = [
        Controls(prompt="a cat", seed=1, strength=0.4),
        Controls(prompt="an oil painting", seed=2, strength=0.6),
        Controls(prompt="", seed=3, strength=0.9),
    ]
    together = stylizer(frames, each).astype(int)
    for frame, controls, ours in zip(frames, each, together, strict=True):
        assert np.abs(stylizer(frame[None], controls)[0] - ours).max() <= 1
    assert np.abs(stylizer(frames, each[::-1]) - together).max() > 10


@pytest.fixture
def with_i420(monkeypatch):
    """As on CUDA."""
    monkeypatch.setattr(Stylizer, "takes_i420", True)


def test_submit_gives_the_pictures_of_a_call_and_their_planes(stylizer, frames, with_i420):
    each = [Controls(prompt="a cat", seed=seed) for seed in range(3)]
    pictures = submitted(stylizer, frames, each)
    assert np.array_equal(pictures.rgb, stylizer(frames, each))
    assert np.array_equal(pictures.i420, color.to_i420(torch.from_numpy(pictures.rgb)).numpy())
    assert pictures.i420.shape == (3, 96, 96)
    assert pictures.kind is None


def test_no_planes_are_made_where_nobody_asks_or_another_makes_them_faster(stylizer, frames, with_i420, monkeypatch):
    controls, mask = Controls(prompt="a cat"), np.full(frames.shape[:3], 255, np.uint8)
    masked = submitted(stylizer, frames, controls, mask=mask, i420=False)
    assert masked.i420 is None
    assert np.array_equal(masked.rgb, stylizer(frames, controls, mask=mask))
    monkeypatch.setattr(Stylizer, "takes_i420", False)
    assert submitted(stylizer, frames, controls).i420 is None


def test_submit_takes_video_as_it_came(stylizer):
    came = rng.integers(16, 236, (2, 180, 160), np.uint8)
    rgb = np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in came])
    for controls in (Controls(prompt="a cat"), Controls(bypass=True)):
        assert np.array_equal(submitted(stylizer, came, controls).rgb, stylizer(rgb, controls))


def test_what_is_submitted_without_frames_is_imagined(stylizer):
    each = [Controls(prompt="a cat", seed=seed, steps=2) for seed in (4, 5)]
    assert np.array_equal(submitted(stylizer, None, each).rgb, stylizer.imagine(each[0], count=2))
    apart = [each[0].merged({"strength": 0.0}), each[1].merged({"bypass": True})]
    assert np.array_equal(submitted(stylizer, None, apart).rgb, submitted(stylizer, None, each).rgb)


def test_the_pending_of_a_batch_gives_the_pictures_of_a_call(stylizer, frames):
    """Whatever engine: with a device that runs ahead, it is what waits."""
    controls = Controls(prompt="a cat")
    pending = stylizer.submit(Batch(frames, (controls,) * 3))
    assert pending.is_there()
    assert np.array_equal(pending().rgb, stylizer(frames, controls))
    reusing = stylizer.submit(Batch(frames, (controls.merged({"reuse": 2}),) * 3, streams=(1, 2, 3)))
    assert np.array_equal(reusing().rgb, stylizer(frames, controls))
    assert reusing().kind == "anew"


def test_where_a_shared_step_fails_all_that_were_under_way_say_so_and_others_go_on(stylizer, frames, monkeypatch):
    controls = Controls(prompt="a cat", steps=3)
    first = sharing_steps(stylizer, frames[:1], controls)
    with monkeypatch.context() as failing:
        failing.setattr(stylizer.sampler.denoise, "forward", lambda *call: [][0])
        with pytest.raises(IndexError):
            sharing_steps(stylizer, frames[1:2], controls)
    with pytest.raises(IndexError):
        first()
    assert np.array_equal(sharing_steps(stylizer, frames[:1], controls)().rgb, stylizer(frames[:1], controls))


def test_frames_that_the_engine_was_told_to_forget_are_not_painted_later(stylizer, frames):
    pending = sharing_steps(stylizer, frames[:1], Controls(steps=2))
    stylizer.forget()
    with pytest.raises(RuntimeError, match="let go"):
        pending()


def test_frames_under_way_are_finished_with_the_parts_they_began_with(stylizer, frames):
    controls, painter = Controls(prompt="a cat", steps=2), stylizer.sampler
    pending = sharing_steps(stylizer, frames[:1], controls)
    stylizer.use(painter.encode, painter.denoise, painter.decode)
    assert np.array_equal(pending().rgb, stylizer(frames[:1], controls))


def test_the_negative_prompt_acts_only_with_guidance(stylizer, frames):
    plain = stylizer(frames, Controls(prompt="a cat"))
    assert np.array_equal(plain, stylizer(frames, Controls(prompt="a cat", negative_prompt="grey")))
    guided = stylizer(frames, Controls(prompt="a cat", guidance=2.0))
    assert not np.array_equal(guided, stylizer(frames, Controls(prompt="a cat", guidance=2.0, negative_prompt="grey")))


def test_a_prompt_is_encoded_once(stylizer, frames, monkeypatch):
    calls = []
    (encoder,) = stylizer.conditionings.prompts.text_encoders
    encode = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **k: calls.append(1) or encode(*a, **k))
    for strength in (0.3, 0.5, 0.7):
        for _ in range(3):
            stylizer(frames, Controls(prompt="a prompt nobody asked for yet", strength=strength))
    assert len(calls) == 1


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_frame_reads_nothing_back_from_the_device(stylizer, frames, scale):
    """No `.item()` and no other copy of a scalar to the host: on a GPU each would wait for all work before it."""
    controls = Controls(prompt="a cat", guidance=1.5)
    i420 = np.zeros((3, 180, 160), np.uint8)
    stylizer(frames, controls, scale=scale)
    with torch.profiler.profile() as profile:
        stylizer(frames, controls, scale=scale)
        submitted(stylizer, i420, controls, scale=scale)
    names = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in names
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"}


def test_features_follow_the_model(stylizer, tmp_path):
    assert stylizer.capabilities.features == {"guidance", "cfg"}
    full = load(ModelSpec(str(tiny.checkpoint(tmp_path / "f", guidance_embedding=True)), width=64, height=64), "cpu")
    assert full.capabilities.features == {"guidance"}
    net = str(tiny.controlnet(tmp_path / "net"))
    edges = load(
        ModelSpec(str(tiny.checkpoint(tmp_path / "b")), controlnet=net, width=64, height=64, dtype="float32"), "cpu"
    )
    assert edges.capabilities.features == {"guidance", "cfg", "control", "canny"}
    frame = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    plain, held = (edges(frame, Controls(control_scale=scale)) for scale in (0.0, 2.0))
    assert not np.array_equal(plain, held)


def test_a_model_that_is_let_go_frees_its_weights_at_once(tmp_path):
    """Another may be loaded in its place, and two may not fit."""
    spec = ModelSpec(str(tiny.checkpoint(tmp_path, unet=tiny.SMALLEST)), width=64, height=64)
    stylizer = load(spec, "cpu", compile=False)
    stylizer(np.zeros((1, 64, 64, 3), np.uint8), Controls(steps=1))
    held = [weakref.ref(part) for part in (stylizer.components.unet, stylizer.components.vae)]
    gc.disable()
    try:
        del stylizer
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


def test_what_ran_out_of_memory_is_freed_where_python_and_torch_keep_it(stylizer, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(left() is None))
    circle = [torch.zeros(2)]
    circle.append(circle)
    left = weakref.ref(circle[0])
    del circle
    gc.disable()
    try:
        stylizer.free_memory()
        assert left() is None
        monkeypatch.setattr(stylizer, "device", torch.device("cuda"))
        stylizer.free_memory()
    finally:
        gc.enable()
    assert emptied == [True]


def test_graphs_are_refused_where_there_is_no_cuda(tmp_path):
    spec = ModelSpec(str(tiny.checkpoint(tmp_path, unet=tiny.SMALLEST)), width=64, height=64)
    with pytest.raises(LoadError, match="CUDA"):
        load(spec, "cpu", compile=False, graphs=True)
    stylizer = load(spec, "cpu", compile=False)
    stylizer.capture(Controls(), lambda detail, progress: pytest.fail("there are none to capture"))
    assert stylizer.capture_next() is False


@pytest.mark.parametrize("shape", [(1, 48, 64), (3, 48, 64), (1, 51, 64), (48, 64, 3)])
def test_a_call_takes_no_grey_frames_for_video(stylizer, shape):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[N, H, W, 3\], not .*uint8"):
        stylizer(np.zeros(shape, np.uint8), Controls())


def test_pictures_of_words_share_a_batch_whatever_their_bypass_is(stylizer):
    each = [Controls(prompt="a cat", bypass=bypass, seed=seed) for seed, bypass in enumerate((True, False))]
    assert submitted(stylizer, None, each).rgb.shape[0] == 2
