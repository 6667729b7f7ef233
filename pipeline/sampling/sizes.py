"""The sizes at which a model paints: the one asked for, and smaller ones for where a device is too slow for that."""

from __future__ import annotations

import math

import numpy as np
from diffusers import AutoencoderTiny

from pipeline.settings import ModelSpec

from .model import Components

SCALES = (1.0, 0.75, 0.5)  # of the width and height


class Sizes:
    """scales: those at which the model paints, 1 first. None leaves a side less than half of what the UNet was trained
    at: below, it paints specks."""

    def __init__(self, spec: ModelSpec, parts: Components):
        self._asked = (spec.height, spec.width)
        self._multiple = math.lcm(8, *(extra.multiple for extra in parts.extras))
        config = parts.vae.config
        tiny = isinstance(parts.vae, AutoencoderTiny)
        stages = config.encoder_block_out_channels if tiny else config.block_out_channels
        self._factor, self._channels = 2 ** (len(stages) - 1), config.latent_channels
        trained = parts.unet.config.sample_size or parts.family.size // self._factor
        least = self._factor * np.min(trained) // 2
        self.scales = tuple(scale for scale in SCALES if scale == 1 or min(self.picture(scale)) >= least)

    def picture(self, scale: float = 1.0) -> tuple[int, int]:
        """(height, width) in pixels."""
        step = self._multiple
        height, width = (max(1, round(side * scale / step)) * step for side in self._asked)
        return height, width

    def latents(self, scale: float = 1.0) -> tuple[int, int, int]:
        """(channels, height, width)."""
        height, width = self.picture(scale)
        return self._channels, height // self._factor, width // self._factor
