"""Which part of the picture is repainted? A mask, white where to, and the source put back around it."""

from __future__ import annotations

import io
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

FEATHER = 8  # pixels over which painting and source blend
MAX_SIDE = 4096


class BadMask(ValueError):
    """One sentence for who sent it."""


class Mask:
    """A mask as it was sent: uint8 [h, w]; it is scaled to whatever size the picture has."""

    def __init__(self, grey: np.ndarray):
        self.grey = grey
        self.fitted = lru_cache(2)(self._fitted)

    def _fitted(self, width: int, height: int) -> np.ndarray:
        """uint8 [height, width], 0 or 255."""
        scaled = cv2.resize(self.grey, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.where(scaled > 127, 255, 0).astype(np.uint8)


def read_mask(png: bytes) -> Mask:
    """A picture, white (or opaque, where it has transparency) where to repaint. Raises BadMask."""
    try:
        with Image.open(io.BytesIO(png)) as image:
            if max(image.size) > MAX_SIDE:
                raise BadMask(f"The mask is {image.width}x{image.height}: a side may have {MAX_SIDE} pixels.")
            grey = image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L")
            return Mask(np.asarray(grey))
    except BadMask:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadMask("The mask is not a PNG that can be read.") from error


def pasted(source: np.ndarray, picture: np.ndarray, mask: np.ndarray, feather: int = FEATHER) -> np.ndarray:
    """The painting inside the mask, the source outside. All uint8 [h, w, 3], mask [h, w]."""
    share = (mask > 127).astype(np.float32)
    if feather:
        share = cv2.GaussianBlur(share, (0, 0), feather / 2)
    share = share[..., None]
    return (source + share * (picture.astype(np.float32) - source)).round().astype(np.uint8)
