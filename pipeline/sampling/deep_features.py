"""A UNet's outermost blocks on their own, and what they are given from below: its deep features.

What lies below a UNet's outermost blocks sees the picture in little and says what is where; the outermost blocks draw
it. Where to cut is a row of the family's data (loading.families).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .adapters import Extra
from .denoiser import UNetCall, guided

Features = tuple[Tensor, ...]  # of one step, each [B, C, h, w]: (prompt,) or with CFG (negative prompt, prompt)
Deep = tuple[Features, ...]  # of all steps


class OuterBlocks(UNetCall):
    """outer: how many of the UNet's outermost blocks, on each side, are told apart from those below."""

    def __init__(self, unet: UNet2DConditionModel, extras: Sequence[Extra] = (), outer: int = 1):
        super().__init__(unet, extras)
        self.outer = outer


class FeatureDenoiser(OuterBlocks):
    """A whole call that also returns what its outer blocks were given from below."""

    def forward(
        self, x: Tensor, t: Tensor, embeds: Tensor, guidance: Tensor | None = None, *others: Any
    ) -> tuple[Tensor, Features]:
        """(the model's output, the deep features). Arguments are those of Denoiser."""
        arguments = self.arguments(x, t, embeds, guidance, *others)
        with input_of(self.unet.up_blocks[-self.outer]) as given:
            out = self.unet(**arguments, return_dict=False)[0]
        (features,) = given
        return guided(out, guidance), tuple(features.chunk(1 if guidance is None else 2))


@contextmanager
def input_of(block: nn.Module) -> Iterator[list[Tensor]]:
    """What an up block is given from below, in each of its calls meanwhile."""
    given: list[Tensor] = []
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        yield given
    finally:
        hook.remove()


class ShallowDenoiser(OuterBlocks):
    """A call of the outer blocks alone, on deep features that were kept."""

    def forward(
        self, features: Features, x: Tensor, t: Tensor, embeds: Tensor, guidance: Tensor | None = None, *others: Any
    ) -> Tensor:
        """The model's output; arguments after the features are those of Denoiser."""
        arguments = self.arguments(x, t, embeds, guidance, *others)
        below = features[0] if guidance is None else torch.cat(features)
        return guided(shallow(self.unet, below, self.outer, **arguments), guidance)


def shallow(
    unet: UNet2DConditionModel,
    below: Tensor,
    outer: int,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    timestep_cond: Tensor | None = None,
    added_cond_kwargs: dict[str, Tensor] | None = None,
    down_block_additional_residuals: list[Tensor] | None = None,
    mid_block_additional_residual: Tensor | None = None,
    down_intrablock_additional_residuals: list[Tensor] | None = None,
) -> Tensor:
    """A UNet's output from its `outer` outermost blocks on each side, and what the innermost is given from below.

    The last arguments are those of UNet2DConditionModel, whose call it equals where `below` comes from the same call;
    those for blocks that do not run (a ControlNet's residual of the middle, for one) are not looked at.
    """
    # 1. time, guidance, and SDXL's pooled text and sizes
    embedded = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
    added = unet.get_aug_embed(
        emb=embedded, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    embedded = embedded if added is None else embedded + added

    def run(block: nn.Module, x: Tensor, **own: Any) -> Any:
        attends = getattr(block, "has_cross_attention", False)
        prompt = {"encoder_hidden_states": encoder_hidden_states} if attends else {}
        return block(hidden_states=x, temb=embedded, **prompt, **own)

    # 2. down: a T2I-Adapter's features join each block
    x = unet.conv_in(sample)
    skips = [x]
    features = down_intrablock_additional_residuals or ()
    for number, block in enumerate(unet.down_blocks[:outer]):
        own = features[number] if number < len(features) else None
        if own is not None and getattr(block, "has_cross_attention", False):
            x, states = run(block, x, additional_residuals=own)
        else:
            x, states = run(block, x)
            if own is not None:
                x += own  # in place, as UNet2DConditionModel has it: it is one of the states, too
        skips += states

    # 3. up: a ControlNet's residuals join each skip connection. What the blocks below would take is left out.
    ups = unet.up_blocks[-outer:]
    skips = skips[: sum(len(block.resnets) for block in ups)]
    if down_block_additional_residuals is not None:
        residuals = down_block_additional_residuals[: len(skips)]
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
    x = below
    for block in ups:
        count = len(block.resnets)
        skips, joining = skips[:-count], tuple(skips[-count:])
        x = run(block, x, res_hidden_states_tuple=joining, upsample_size=skips[-1].shape[2:] if skips else None)

    # 4. out
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
