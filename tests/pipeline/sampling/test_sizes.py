"""Smaller pictures, where a device is too slow for those asked for."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from pipeline import PRESETS, Controls, ModelSpec, load
from pipeline.pixels import color
from tests import tiny
from tests.paths import CARPHONE

rng = np.random.default_rng(0)


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
