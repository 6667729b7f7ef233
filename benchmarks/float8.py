"""Linear layers in float8: what hardware with float8 tensor cores could gain, for benchmarks/candidates.py.

Weights are quantized once, with a scale for each output channel; activations for each call, with a scale for each row.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
MOST = torch.finfo(FLOAT8).max
MULTIPLE = 16  # what torch._scaled_mm wants both sides of a weight to be on CUDA


class Float8Linear(nn.Module):
    """Stands in for a linear layer: [..., in] -> [..., out] in the dtype of its input."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = row_scales(weight)
        self.register_buffer("weight", quantized(weight, scale))  # [out, in]
        self.register_buffer("scale", scale.reshape(1, -1))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scale = row_scales(rows)
        out = torch._scaled_mm(
            quantized(rows, scale).contiguous(),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return out.reshape(*x.shape[:-1], -1)


def row_scales(rows: Tensor) -> Tensor:
    """float32 [N, 1], which brings the largest of each row [N, K] to the largest that float8 holds."""
    return rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / MOST


def quantized(rows: Tensor, scales: Tensor) -> Tensor:
    return (rows / scales).to(FLOAT8)


def to_float8(unet: UNet2DConditionModel) -> None:
    """Replace the linear layers of its transformers, where nearly all of its linear work is. Raises ValueError where
    none has sizes that float8 products take."""
    found = [
        (parent, name, child)
        for transformer in unet.modules()
        if isinstance(transformer, Transformer2DModel)
        for parent in transformer.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and not (child.in_features % MULTIPLE or child.out_features % MULTIPLE)
    ]
    if not found:
        raise ValueError(f"This UNet has no linear layer whose sizes are multiples of {MULTIPLE}.")
    for parent, name, child in found:
        parent.register_module(name, Float8Linear(child))
