"""One call for the model's output at a timestep, the same for every model: CFG, guidance embedding, extras."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from .control import ControlNetExtra


class Denoiser(nn.Module):
    """UNet plus what joins its call. An extra maps the call's inputs to further keyword arguments of the UNet.

    A module, so that all of it compiles and exports as one.
    """

    def __init__(self, unet: UNet2DConditionModel, extra: ControlNetExtra | None = None):
        super().__init__()
        self.unet = unet
        self.extra = extra

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        embeds: Tensor,
        guidance: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        control: Tensor | None = None,
        control_scale: Tensor | None = None,
    ) -> Tensor:
        """The model's output, float32 [B, C, h, w].

        x: latents [B, C, h, w]; t: int64 [B]; embeds: [B, tokens, width].
        guidance: float32 [B, 1, 1, 1] turns on CFG: embeds are then [2B, ...], the unconditional half first.
        timestep_cond: [B, 256], full LCMs only. control: [B, 3, H, W] in [0, 1]; control_scale: [B, 1, 1, 1].
        """
        if guidance is not None:
            x, t = torch.cat([x, x]), torch.cat([t, t])
            if control is not None:
                control, control_scale = torch.cat([control, control]), torch.cat([control_scale, control_scale])
        joins = {}
        if self.extra is not None:
            joins = self.extra(x, t, embeds, control, control_scale)
        out = self.unet(x, t, encoder_hidden_states=embeds, timestep_cond=timestep_cond, return_dict=False, **joins)[0]
        out = out.float()
        if guidance is None:
            return out
        unconditional, conditional = out.chunk(2)
        return unconditional + guidance * (conditional - unconditional)
