"""Coded pictures become pixels to paint: colour, pixel shape, orientation and size, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from picture_files import FILES

from .errors import FilmError

HD_LINES = 720  # from here up video that does not say so is BT.709, below it BT.601
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
PAPER = 255  # what shows through transparent pixels


@dataclass(frozen=True)
class PictureShape:
    """How coded pixels become shown ones. matrix: (a, b, c, d) of x' = ax + cy, y' = bx + dy (ISO 14496-12, 6.2.2)."""

    sample_aspect: Fraction = Fraction(1)  # a pixel's width over its height
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)

    @property
    def lies(self) -> bool:
        """On its side, as telephones hold their cameras."""
        a, b, _, _ = self.matrix
        return abs(b) > abs(a)

    def shown(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) upright and in square pixels."""
        wide = max(1, round(width * self.sample_aspect))
        return (height, wide) if self.lies else (wide, height)

    def upright(self, rgb: np.ndarray) -> np.ndarray:
        a, b, c, d = self.matrix
        if self.lies:
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def check_size(path: Path, width: int, height: int) -> None:
    """Raises FilmError where a picture is larger than anything that is filmed."""
    if (refusal := FILES.refusal(width, height)) is not None:
        raise FilmError(f"{path} {refusal}.")


def fitted(
    frame: av.VideoFrame, shape: PictureShape, size: tuple[int, int], reformatter: VideoReformatter
) -> np.ndarray:
    """uint8 [height, width, 3] RGB that covers `size` (width, height), what is over being cropped on both sides."""
    width, height = size[::-1] if shape.lies else size
    shown = frame.width * shape.sample_aspect
    scale = max(width / shown, Fraction(height, frame.height))
    to_width, to_height = max(width, round(shown * scale)), max(height, round(frame.height * scale))
    is_rgb = frame.format.is_rgb
    transparent = any(component.is_alpha for component in frame.format.components)
    hd = frame.height >= HD_LINES
    colorspace = (Colorspace.ITU709 if hd else Colorspace.ITU601) if frame.colorspace == UNSPECIFIED else None
    full = is_rgb or frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    picture = reformatter.reformat(
        frame,
        to_width,
        to_height,
        "rgba" if transparent else "rgb24",
        src_colorspace=None if is_rgb else colorspace,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    left, top = (to_width - width) // 2, (to_height - height) // 2
    picture = picture[top : top + height, left : left + width]
    return np.ascontiguousarray(shape.upright(_on_paper(picture) if transparent else picture))


def _on_paper(rgba: np.ndarray) -> np.ndarray:
    rgb, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((rgb * alpha + PAPER * (255 - alpha) + 127) // 255).astype(np.uint8)
