"""Masks: white where a picture is repainted, and the source put back around it."""

from __future__ import annotations

import io
import math

import cv2
import numpy as np
from PIL import Image

from picture_files import MASKS, TooLarge, Unreadable, read_picture

FEATHER = 8  # pixels over which painting and source blend
# Kept of a mask that comes before the model's size is known: as much as most models paint, so that nothing of theirs is
# lost, and a megabyte for each name, not the 16 that a PNG of a few kilobytes may hold.
UNFITTED_PIXELS = 1024 * 1024


class BadMask(ValueError):
    """One sentence for who sent it."""


class Mask:
    """Where to repaint: uint8 [h, w] of any size, from the first use on kept in the size of that only."""

    def __init__(self, grey: np.ndarray):
        self._kept: tuple[np.ndarray, tuple[int, int] | None] = grey, None  # and the size it was fitted to

    def fitted(self, width: int, height: int) -> np.ndarray:
        """uint8 [height, width], 0 or 255."""
        grey, size = self._kept
        if size == (width, height):
            return grey
        scaled = cv2.resize(grey, (width, height), interpolation=cv2.INTER_LINEAR)
        fitted = np.where(scaled > 127, 255, 0).astype(np.uint8)
        self._kept = fitted, (width, height)
        return fitted

    @property
    def nbytes(self) -> int:
        return self._kept[0].nbytes


def read_mask(png: bytes, size: tuple[int, int] | None = None) -> Mask:
    """A picture, white (or opaque, where it has transparency) where to repaint. Raises BadMask.

    size: (width, height) of what the model paints, None while that is not known.
    """
    try:
        grey = read_picture(io.BytesIO(png), ("PNG",), MASKS, _grey)
    except TooLarge as error:
        raise BadMask(f"The mask {error}.") from error
    except Unreadable as error:
        raise BadMask("The mask is not a PNG that can be read.") from error
    if size is None:
        return Mask(_shrunk(grey))
    mask = Mask(grey)
    mask.fitted(*size)
    return mask


def _grey(image: Image.Image) -> np.ndarray:
    """uint8 [height, width]"""
    return np.asarray(image.convert("RGBA").getchannel("A") if image.has_transparency_data else image.convert("L"))


def _shrunk(grey: np.ndarray) -> np.ndarray:
    """At most UNFITTED_PIXELS of it."""
    height, width = grey.shape
    scale = math.sqrt(UNFITTED_PIXELS / grey.size)
    if scale >= 1:
        return grey
    return cv2.resize(grey, (max(1, int(width * scale)), max(1, int(height * scale))), interpolation=cv2.INTER_AREA)


def pasted(source: np.ndarray, picture: np.ndarray, mask: np.ndarray, feather: int = FEATHER) -> np.ndarray:
    """The painting inside the mask, the source outside. All uint8 [h, w, 3], mask [h, w]."""
    share: np.ndarray = (mask > 127).astype(np.float32)
    if feather:
        share = cv2.GaussianBlur(share, (0, 0), feather / 2)
    share = share[..., None]
    return (source + share * (picture.astype(np.float32) - source)).round().astype(np.uint8)
