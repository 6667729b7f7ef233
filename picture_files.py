"""Pictures that somebody else made are opened in the formats that their route names, up to a size, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image

T = TypeVar("T")

# A line for each, past the log: of what Limit refuses, and of what Pillow reads well enough or not at all.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Limit:
    """The largest picture that is decoded: pixels of its longer side, and in all."""

    side: int
    pixels: int

    def refusal(self, width: int, height: int) -> str | None:
        """What to say of a picture that is larger, to be put after its name."""
        if max(width, height) <= self.side and width * height <= self.pixels:
            return None
        limit = f"{self.pixels // 10**6} megapixels or {self.side} a side"
        return f"is {width}x{height}: pictures larger than {limit} are not read"


FILES = Limit(16_384, 64_000_000)  # beyond lies no camera's picture, and gigabytes of memory a frame
MASKS = Limit(4_096, 4_096 * 4_096)  # they may come from anybody: 64 kB of PNG can be 67 MB while they are read


class Unreadable(ValueError):
    """The text is to be put after the picture's name."""


class TooLarge(Unreadable):
    """By its header; nothing of it was decoded."""


def read_picture(
    source: Path | BinaryIO, formats: Collection[str], limit: Limit, convert: Callable[[Image.Image], T]
) -> T:
    """What `convert` makes of the picture. Raises Unreadable, TooLarge.

    formats: by Pillow's names. Without them it tries all that it knows, and starts Ghostscript for some. convert: only
    calls of Pillow, for whatever they raise is taken as a fault of the picture.
    """
    try:
        with Image.open(source, formats=tuple(formats)) as image:
            refusal = limit.refusal(*image.size)
            if refusal is None:
                return convert(image)
    except MemoryError:
        raise
    except Exception as error:
        # Pillow answers malformed bytes with whatever it stumbles over: besides OSError, SyntaxError and ValueError
        # also AssertionError, IndexError, KeyError, TypeError, struct.error.
        raise Unreadable("is not a picture that can be read") from error
    raise TooLarge(refusal)
