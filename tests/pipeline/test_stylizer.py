"""What a caller of the Stylizer relies on: shapes, kinds, fixed noise, batches that mix nothing."""

from __future__ import annotations

import gc
import weakref

import av
import cv2
import numpy as np
import pytest
import torch

from pipeline import PRESETS, Controls, LoadError, ModelSpec, compiling, errors, load
from pipeline.pixels import color
from tests import tiny
from tests.paths import CARPHONE

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


def test_a_batch_of_unequal_shapes_is_refused(stylizer, frames):
    with pytest.raises(ValueError, match="shape keys"):
        stylizer(frames, [Controls(steps=1), Controls(steps=2), Controls(steps=1)])
    with pytest.raises(ValueError, match="3 frames came with 2"):
        stylizer(frames, [Controls(), Controls()])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((1, 64, 96, 4), np.uint8),
        np.zeros((1, 64, 96, 3), np.float32),
        np.zeros((1, 0, 96, 3), np.uint8),
    ],
)
def test_frames_of_another_kind_are_refused(stylizer, frames):
    with pytest.raises(ValueError, match="uint8"):
        stylizer(frames, Controls())


def test_live_gives_the_pictures_of_a_call_and_their_planes(stylizer, frames):
    each = [Controls(prompt="a cat", seed=seed) for seed in range(3)]
    pictures, planes = stylizer.live(frames, each)
    assert np.array_equal(pictures, stylizer(frames, each))
    assert np.array_equal(planes, color.to_i420(torch.from_numpy(pictures)).numpy())
    assert planes.shape == (3, 96, 96)


def test_live_takes_video_as_it_came(stylizer):
    came = rng.integers(16, 236, (2, 180, 160), np.uint8)
    rgb = np.stack([cv2.cvtColor(one, cv2.COLOR_YUV2RGB_I420) for one in came])
    for controls in (Controls(prompt="a cat"), Controls(bypass=True)):
        assert np.array_equal(stylizer.live(came, controls)[0], stylizer(rgb, controls))


def test_without_wait_a_call_gives_what_waits_for_its_pictures(stylizer, frames):
    controls = Controls(prompt="a cat")
    assert np.array_equal(stylizer(frames, controls, wait=False)(), stylizer(frames, controls))
    tensor = torch.from_numpy(frames)
    assert torch.equal(stylizer(tensor, controls, wait=False)(), stylizer(tensor, controls))
    for ours, expected in zip(
        stylizer.live(frames, controls, wait=False)(), stylizer.live(frames, controls), strict=True
    ):
        assert np.array_equal(ours, expected)
    each = [controls.merged({"reuse": 2})] * len(frames)
    pending, memories = stylizer.remembering(frames, each, [None] * len(frames), wait=False)
    assert np.array_equal(pending(), stylizer.remembering(frames, each, [None] * len(frames))[0])
    assert all(memory is not None for memory in memories)


def test_a_live_stream_batch_gives_what_live_gives(stylizer):
    came, controls = rng.integers(16, 236, (1, 180, 160), np.uint8), Controls(prompt="a cat", steps=2)
    batch = stylizer.stream_batch()
    assert batch(came, controls, live=True) is None
    for ours, expected in zip(batch(), stylizer.live(came, controls), strict=True):
        assert np.array_equal(ours, expected)
    with pytest.raises(ValueError, match="frames must be uint8"):
        batch(came, controls)


@pytest.mark.parametrize("shape", [(1, 179, 160), (1, 180, 161), (0, 180, 160), (1, 180, 160, 4)], ids=str)
def test_live_refuses_what_is_neither_rgb_nor_i420(stylizer, shape):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H"):
        stylizer.live(np.zeros(shape, np.uint8), Controls())
    with pytest.raises(ValueError, match="2 frames came with 1"):
        stylizer.live(np.zeros((2, 180, 160), np.uint8), [Controls()])


def test_the_negative_prompt_acts_only_with_guidance(stylizer, frames):
    plain = stylizer(frames, Controls(prompt="a cat"))
    assert np.array_equal(plain, stylizer(frames, Controls(prompt="a cat", negative_prompt="grey")))
    guided = stylizer(frames, Controls(prompt="a cat", guidance=2.0))
    assert not np.array_equal(guided, stylizer(frames, Controls(prompt="a cat", guidance=2.0, negative_prompt="grey")))


def test_a_prompt_is_encoded_once(stylizer, frames, monkeypatch):
    calls = []
    (encoder,) = stylizer.recipes.prompts.text_encoders
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
        stylizer.live(i420, controls, scale)
    names = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in names
    assert not names & {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero"}


def test_features_follow_the_model(stylizer, tmp_path):
    assert stylizer.features == {"guidance", "cfg"}
    full = load(ModelSpec(str(tiny.checkpoint(tmp_path / "f", guidance_embedding=True)), width=64, height=64), "cpu")
    assert full.features == {"guidance"}
    net = str(tiny.controlnet(tmp_path / "net"))
    edges = load(
        ModelSpec(str(tiny.checkpoint(tmp_path / "b")), controlnet=net, width=64, height=64, dtype="float32"), "cpu"
    )
    assert edges.features == {"guidance", "cfg", "control", "canny"}
    frame = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    plain, held = (edges(frame, Controls(control_scale=scale)) for scale in (0.0, 2.0))
    assert not np.array_equal(plain, held)


@pytest.fixture(scope="module")
def mini():
    return load(PRESETS["mini"], "cpu", compile=False)


@pytest.fixture(scope="module")
def photo():
    with av.open(str(CARPHONE)) as clip:
        return next(clip.decode(video=0)).to_ndarray(format="rgb24")[None]


def test_a_smaller_size_gives_the_same_picture_more_coarsely_and_the_full_size_is_as_it_was(mini, photo):
    controls = Controls(prompt="van gogh", steps=1)
    before = mini(photo, controls)
    assert mini.scales == (1.0, 0.75, 0.5)
    for scale in mini.scales[1:]:
        small = mini(photo, controls, scale=scale)
        assert small.shape == before.shape
        assert np.array_equal(small, mini(photo, controls, scale=scale)), "the noise is fixed by the seed"
        assert not np.array_equal(small, mini(photo, controls.merged({"seed": 1}), scale=scale))
        assert 0 < np.abs(coarse(small) - coarse(before)).mean() < 12
    assert np.array_equal(mini(photo, controls), before)
    source = mini(photo, controls.merged({"bypass": True}))
    assert np.array_equal(mini(photo, controls.merged({"bypass": True}), scale=0.5), source)


def coarse(pictures):
    """Without the strokes: the mean of every 32 pixels."""
    return pictures.astype(float).reshape(-1, 8, 32, 8, 32, 3).mean(axis=(2, 4))


@pytest.mark.parametrize("unet", [tiny.SMALLEST, tiny.XL], ids=["sd", "xl"])
def test_what_is_painted_smaller_is_what_a_model_of_that_size_paints(tmp_path, unet):
    """Noise, sizes told to SDXL, control images, masks: all of the smaller picture."""
    base = str(tiny.checkpoint(tmp_path / "base", unet=unet))
    net = None if unet is tiny.XL else str(tiny.controlnet(tmp_path / "net", unet=unet))
    large, small = (
        load(ModelSpec(base, controlnet=net, width=width, height=height, dtype="float32"), "cpu", compile=False)
        for width, height in ((160, 120), (120, 88))
    )
    frame = rng.integers(0, 256, (1, 120, 160, 3), np.uint8)
    mask = np.zeros((1, 120, 160), np.uint8)
    mask[:, :, :90] = 255
    controls = Controls(prompt="a cat", steps=2, guidance=1.5)
    reduced = scaled(frame, 120, 88)
    assert np.array_equal(large(frame, controls, scale=0.75), scaled(small(reduced, controls), 160, 120, "bicubic"))
    masked = large(frame, controls, mask=mask, scale=0.75)
    reduced_mask = torch.nn.functional.interpolate(torch.from_numpy(mask)[:, None], (88, 120), mode="nearest-exact")
    expected = small(reduced, controls, mask=reduced_mask[:, 0].numpy())
    assert np.array_equal(masked, scaled(expected, 160, 120, "bicubic"))


def scaled(frames, width, height, mode="bilinear"):
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return color.scaled(pixels, width, height, mode).permute(0, 2, 3, 1).numpy()


def test_no_size_is_offered_below_half_of_what_the_unet_was_trained_at(tmp_path):
    base = tiny.checkpoint(tmp_path, unet={**tiny.SMALLEST, "sample_size": 32})
    offered = {
        size: load(ModelSpec(str(base), width=size, height=size), "cpu", compile=False).scales
        for size in (256, 176, 128)
    }
    assert offered == {256: (1.0, 0.75, 0.5), 176: (1.0, 0.75), 128: (1.0,)}
    stylizer = load(ModelSpec(str(base), width=128, height=128), "cpu", compile=False)
    with pytest.raises(ValueError, match="does not paint at scale"):
        stylizer(rng.integers(0, 256, (1, 64, 64, 3), np.uint8), Controls(), scale=0.5)


class FullSize(Exception):
    """Compiled code was called."""


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


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_by_its_kind(error, is_one):
    assert errors.is_out_of_memory(error) == is_one


def test_graphs_are_refused_where_there_is_no_cuda(tmp_path):
    spec = ModelSpec(str(tiny.checkpoint(tmp_path, unet=tiny.SMALLEST)), width=64, height=64)
    with pytest.raises(LoadError, match="CUDA"):
        load(spec, "cpu", compile=False, graphs=True)
    stylizer = load(spec, "cpu", compile=False)
    stylizer.record(Controls(), lambda detail, progress: pytest.fail("there are none to record"))
    assert stylizer.record_next() is False


def test_compiled_code_of_the_full_size_is_not_asked_for_another(stylizer, frames):
    """Packages are for fixed shapes: a smaller picture goes through the modules they were made of."""
    plain = stylizer(frames, Controls(), scale=0.5)
    modules = {name: getattr(stylizer.painter, name) for name in compiling.PARTS}
    recorders = {name: compiling._Recorder(module) for name, module in modules.items()}

    def runner(present):
        raise FullSize

    try:
        stylizer.use(**recorders)
        stylizer(frames, Controls())
        code = {name: dict.fromkeys(recorder.calls, runner) for name, recorder in recorders.items()}
        stylizer.use(**{name: compiling.Compiled(modules[name], code[name]) for name in modules})
        assert np.array_equal(stylizer(frames, Controls(), scale=0.5), plain)
        with pytest.raises(FullSize):
            stylizer(frames, Controls())
    finally:
        stylizer.use(**modules)
