"""One call for the model's output at a timestep, the same for every model: CFG, guidance embedding, extras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .adapters import Call, Extra, summed


class UNetCall(nn.Module):
    """UNet plus what joins its call."""

    def __init__(self, unet: UNet2DConditionModel, extras: Sequence[Extra] = ()):
        super().__init__()
        self.unet = unet
        self.extras = nn.ModuleList(extras)

    def arguments(
        self,
        x: Tensor,
        t: Tensor,
        embeds: Tensor,
        guidance: Tensor | None,
        timestep_cond: Tensor | None,
        pooled: Tensor | None,
        time_ids: Tensor | None,
        *conditions: Tensor,
    ) -> dict[str, Any]:
        """The UNet's own, of those of a call; with CFG for 2B pictures, the unconditional half first."""
        if guidance is not None:
            x, t = torch.cat([x, x]), torch.cat([t, t])
            time_ids = None if time_ids is None else torch.cat([time_ids, time_ids])
            conditions = tuple(torch.cat([condition, condition]) for condition in conditions)
        added = None
        if pooled is not None:
            assert time_ids is not None, "the families that take pooled text take sizes, too"
            added = {"text_embeds": pooled, "time_ids": time_ids}
        call, wide, joins, first = Call(x, t, embeds, added), x, [], 0
        for extra in self.extras:
            assert isinstance(extra, Extra)
            own = conditions[first : first + extra.count]
            first += extra.count
            wide = extra.widen(wide, *own)
            joins.append(extra(call, *own))
        return {
            "sample": wide,
            "timestep": t,
            "encoder_hidden_states": embeds,
            "timestep_cond": timestep_cond,
            "added_cond_kwargs": added,
            **summed(joins),
        }


class Denoiser(UNetCall):
    """A module, so that all of it compiles and exports as one."""

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        embeds: Tensor,
        guidance: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        *conditions: Tensor,
    ) -> Tensor:
        """The model's output, float32 [B, C, h, w].

        x: latents [B, C, h, w]; t: int64 [B]; embeds: [B, tokens, width].
        guidance: float32 [B, 1, 1, 1] turns on CFG: embeds and pooled are then [2B, ...], the unconditional half first.
        timestep_cond: [B, 256], full LCMs only. pooled: [B, width] and time_ids: [B, 6], SDXL only.
        conditions: of all extras one after the other, each [B, ...].
        """
        arguments = self.arguments(x, t, embeds, guidance, timestep_cond, pooled, time_ids, *conditions)
        return guided(self.unet(**arguments, return_dict=False)[0], guidance)


def guided(out: Tensor, guidance: Tensor | None) -> Tensor:
    """What the UNet gave, [B, C, h, w] or with CFG [2B, C, h, w], as the model's output, float32 [B, C, h, w]."""
    out = out.float()
    if guidance is None:
        return out
    unconditional, conditional = out.unflatten(0, (2, -1))  # chunk(2) cannot be exported for batches of any size
    return unconditional + guidance * (conditional - unconditional)
