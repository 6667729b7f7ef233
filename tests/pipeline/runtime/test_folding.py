"""Folded autoencoders give what they gave, with fewer multiplications."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.utils.flop_counter import FlopCounterMode

from pipeline import PRESETS, load
from pipeline.runtime.folding import folded

MINI = {"num_encoder_blocks": (0, 1, 2, 3), "num_decoder_blocks": (3, 2, 1, 0)}
TAESD = {"num_encoder_blocks": (1, 3, 3, 3), "num_decoder_blocks": (3, 3, 3, 1)}


def flops(module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


@torch.inference_mode()
@pytest.mark.parametrize("blocks", [MINI, TAESD], ids=["mini", "taesd"])
def test_folding_changes_nothing_but_the_work(blocks):
    torch.manual_seed(0)
    widths = {f"{half}_block_out_channels": (8, 8, 8, 8) for half in ("encoder", "decoder")}
    plain = AutoencoderTiny(**blocks, **widths).double().eval()
    twin = folded(plain)
    picture, latents = torch.rand(2, 3, 128, 168).double() * 2 - 1, torch.randn(2, 4, 16, 21).double()
    for half, given in (("encoder", picture), ("decoder", latents)):
        # The outermost pixels too, where the padding between two convolutions shows.
        torch.testing.assert_close(getattr(twin, half)(given), getattr(plain, half)(given), atol=1e-12, rtol=0)
    assert flops(twin.decoder, latents) < flops(plain.decoder, latents)


def test_a_cpu_paints_with_the_folded_one_and_the_model_stays_as_it_was_loaded():
    stylizer = load(PRESETS["mini"], "cpu", compile=False)
    loaded = stylizer.components.vae
    for part, half in ((stylizer.sampler.encode, "encoder"), (stylizer.sampler.decode, "decoder")):
        assert len(getattr(part.vae, half).layers) < len(getattr(loaded, half).layers)
    assert len(loaded.decoder.layers) == len(AutoencoderTiny.from_config(dict(loaded.config)).decoder.layers)


def test_other_autoencoders_are_given_back():
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    assert folded(vae) is vae
