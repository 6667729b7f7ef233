"""The loss that base, LoRA and ControlNet share: predicted picture against painting, in latents and to the eye."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .pairs import LATENT_STD
from .perceptual import Trunk, perceptual_losses
from .runs import bf16


@dataclass
class PaintingLoss:
    """Latents by Huber; a crop of them decoded and compared with the painting's own pixels by features and Gram
    matrices, which is what brings the strokes (a loss in latents alone gives washes).

    few: how many of the batch are decoded; side: latents of that crop. Both keep the decoded half as dear as the UNet.
    """

    vae: torch.nn.Module
    trunk: Trunk
    few: int
    side: int = 14
    style_weight: float = 1.0
    content_weight: float = 0.4
    pixel_weight: float = 0.4
    latent_weight: float = 2.0

    def __call__(self, x0: torch.Tensor, target: torch.Tensor, picture: torch.Tensor, rng) -> dict[str, torch.Tensor]:
        """x0, target: scaled latents [N, C, h, w]; picture: float [N, 3, 8h, 8w]. Returns weighted losses by name."""
        latent = F.huber_loss(x0 / LATENT_STD, target / LATENT_STD, delta=0.5)
        y, x = (rng.randrange(size - self.side + 1) for size in x0.shape[-2:])
        window = x0[: self.few, :, y : y + self.side, x : x + self.side]
        pixels = picture[: self.few, :, 8 * y : 8 * (y + self.side), 8 * x : 8 * (x + self.side)]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with bf16(x0.device):
            out = self.vae.decoder(window / self.vae.config.scaling_factor)
            style, content = perceptual_losses(self.trunk, out, pixels)
        pixel = (F.avg_pool2d(out.float(), 4) - F.avg_pool2d(pixels, 4)).abs().mean()
        return {
            "latent": self.latent_weight * latent,
            "gram": self.style_weight * style,
            "content": self.content_weight * content,
            "pixel": self.pixel_weight * pixel,
        }
