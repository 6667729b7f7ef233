"""A UNet's outer blocks on the deep features of the same frame give what the whole UNet gives."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import Controls, ModelSpec, load
from pipeline.sampling.deep_features import FeatureDenoiser, ShallowDenoiser
from tests import tiny

SIZE = (96, 64)  # latents of 12 x 8, no multiple of what the UNets scale by
FRAME = np.kron(np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), np.uint8), np.ones((1, 8, 8, 1), np.uint8))


def model(base, **parts):
    spec = ModelSpec(str(base), width=SIZE[0], height=SIZE[1], dtype="float32", **parts)
    return load(spec, "cpu", compile=False)


SYSTEMS = {
    "sd15": lambda at: model(tiny.checkpoint(at)),
    "full LCM": lambda at: model(tiny.checkpoint(at, guidance_embedding=True)),
    "sdxl": lambda at: model(tiny.checkpoint(at, unet=tiny.XL)),
    "ssd-1b": lambda at: model(tiny.checkpoint(at, unet=tiny.SSD)),
    "inpainting": lambda at: model(tiny.checkpoint(at, unet={**tiny.UNET, "in_channels": 9})),
    "sdxl adapter": lambda at: model(
        tiny.checkpoint(at, unet=tiny.XL), adapter=str(tiny.adapter(at / "net", sdxl=True))
    ),
    "controlnet and adapter": lambda at: model(
        tiny.checkpoint(at), controlnet=str(tiny.controlnet(at / "a")), adapter=str(tiny.adapter(at / "b"))
    ),
}


def orders(stylizer, monkeypatch, frames, *controls: Controls):
    """What the painter is given for these controls."""
    seen = []
    with monkeypatch.context() as listening:
        listening.setattr(stylizer, "_paint", lambda order: seen.append(order) or stylizer.sampler(order))
        for each in controls:
            stylizer(frames, each)
    return seen


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_its_own_features_a_frame_is_painted_as_a_whole_call_does(system, tmp_path, monkeypatch):
    stylizer = SYSTEMS[system](tmp_path)
    unet, extras = stylizer.components.unet, stylizer.components.extras
    for order in orders(stylizer, monkeypatch, FRAME, Controls(steps=1), Controls(steps=1, guidance=3.0)):
        whole = stylizer.sampler(order)
        for outer in (1, 2):
            monkeypatch.setattr(stylizer.sampler, "keeping", FeatureDenoiser(unet, extras, outer))
            monkeypatch.setattr(stylizer.sampler, "shallow", ShallowDenoiser(unet, extras, outer))
            pictures, deep = stylizer.sampler.keep(order)
            assert np.array_equal(pictures, whole)
            with monkeypatch.context() as below:  # what lies there does not run
                for block in (*unet.down_blocks[outer:], *unet.up_blocks[:-outer]):
                    below.setattr(block, "forward", None)
                assert np.array_equal(stylizer.sampler.reuse((order, deep)), whole)
