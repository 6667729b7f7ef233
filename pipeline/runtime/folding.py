"""Convolutions with nothing between them are one; nearest-neighbour doubling is part of the convolution behind it.

The same numbers from fewer multiplications, for the plain chains of an AutoencoderTiny. Doubling makes each value four
times, so a 3x3 kernel behind it sees a 2x2 neighbourhood at most: a transposed convolution of 16 taps in place of 36.
Two convolutions with no activation between are one of 5x5, which pays where the second has few outputs or a stride.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import takewhile

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn


def folded(vae: nn.Module) -> nn.Module:
    """The same autoencoder with less work, in channels-last; other kinds as they are. Unfolded layers are shared.

    Results differ by rounding only.
    """
    if not isinstance(vae, AutoencoderTiny):
        return vae
    twin = deepcopy(vae, {id(tensor): tensor for tensor in (*vae.parameters(), *vae.buffers())})
    for half in (twin.encoder, twin.decoder):
        half.layers = nn.Sequential(*_folded(list(half.layers)))
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True  # nobody else looks at what it is given
    return twin.to(memory_format=torch.channels_last).requires_grad_(False)


def _folded(layers: list[nn.Module]) -> list[nn.Module]:
    out: list[nn.Module] = []
    while layers:
        doubles = _doubles(layers[0])
        convs = [conv for conv in takewhile(_is_3x3, layers[doubles : doubles + 2]) if isinstance(conv, nn.Conv2d)]
        match (doubles, *(conv.stride[0] for conv in convs)):
            case (True, 1, 1) | (False, 1, 2):
                first, second = convs
                out.append(Chain(layers[:doubles], first, second))
                taken = doubles + 2
            case (True, 1, *_):
                out.append(doubled(convs[0]))
                taken = 2
            case _:
                out.append(layers[0])
                taken = 1
        layers = layers[taken:]
    return out


def _doubles(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Upsample) and layer.mode == "nearest" and layer.scale_factor == 2


def _is_3x3(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.stride in ((1, 1), (2, 2))
        and (layer.groups, layer.padding_mode) == (1, "zeros")
    )


def doubled(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """Nearest-neighbour doubling and a 3x3 convolution of stride 1, as one transposed convolution."""
    whole = nn.ConvTranspose2d(
        conv.in_channels, conv.out_channels, 4, stride=2, padding=1, bias=conv.bias is not None
    ).to(conv.weight)
    # Along an axis, taps (a, b, c) become (c, b + c, a + b, a).
    kernel = conv.weight.double().transpose(0, 1).flip(2, 3)
    ones = torch.ones(2, 2).to(kernel)
    spread = F.conv_transpose2d(kernel.flatten(0, 1)[:, None], ones[None, None])
    with torch.no_grad():
        whole.weight.copy_(spread.view(*kernel.shape[:2], 4, 4))
        if conv.bias is not None:
            assert whole.bias is not None
            whole.bias.copy_(conv.bias)
    return whole


class Chain(nn.Module):
    """[doubling,] 3x3 convolution, 3x3 convolution, as one; [B, C, h, w] to what they would give.

    The second pads with zeros what the first gives, where one convolution would go on: the outermost rows and columns
    are therefore computed by the layers themselves.
    """

    def __init__(self, doubling: list[nn.Module], first: nn.Conv2d, second: nn.Conv2d):
        super().__init__()
        self.layers, self.doubles = nn.Sequential(*doubling, first, second), bool(doubling)
        self.rim = 2 if self.doubles else 4  # rows of input that settle the outermost of the output
        # Correlating with one kernel and then another is correlating with their full convolution.
        kernel = F.conv2d(
            first.weight.double().transpose(0, 1), second.weight.double().flip(2, 3), padding=2
        ).transpose(0, 1)
        bias = torch.zeros(second.out_channels).to(kernel) if second.bias is None else second.bias.double()
        if first.bias is not None:
            bias = bias + second.weight.double().sum((2, 3)) @ first.bias.double()
        stride, padding = second.stride[0], 2
        if self.doubles:
            kernel, bias, padding = _phases(kernel), bias.repeat_interleave(4), 1
        self.whole = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], stride, padding).to(first.weight)
        with torch.no_grad():
            self.whole.weight.copy_(kernel)
            assert self.whole.bias is not None
            self.whole.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.whole(x)
        if self.doubles:
            out = F.pixel_shuffle(out, 2)
        for axis in (2, 3):
            ends = (x.narrow(axis, 0, self.rim), x.narrow(axis, x.shape[axis] - self.rim, self.rim))
            start, end = self.layers(torch.cat(ends)).unflatten(0, (2, -1))
            out.select(axis, 0).copy_(start.select(axis, 0))
            out.select(axis, -1).copy_(end.select(axis, -1))
        return out


def _phases(kernel: Tensor) -> Tensor:
    """[O, C, 5, 5] behind a doubling -> [4 O, C, 3, 3] before a pixel shuffle."""
    phases = kernel.new_zeros(kernel.shape[0], 2, 2, kernel.shape[1], 3, 3)
    for py in range(2):
        for px in range(2):
            for y in range(5):
                for x in range(5):
                    phases[:, py, px, :, (py + y) // 2, (px + x) // 2] += kernel[:, :, y, x]
    return phases.flatten(0, 2)
