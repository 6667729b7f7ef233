"""Pictures as a clip: one, a folder of them, those whose names fit a pattern, or blank ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from picture_files import FILES, Unreadable, read_picture

from .errors import FilmError
from .fitting import PAPER, PictureShape, fitted

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of these, whatever a file's name says
_PLACE = re.compile(r"%(?:0(?P<digits>\d+))?d|\*")


@dataclass(frozen=True, slots=True)
class Still:
    """One picture of a clip. Times are in units of the clip's time_base; `pts` counts from the film's beginning."""

    rgb: np.ndarray  # uint8 [height, width, 3]
    pts: int
    duration: int


Moment = Callable[[tuple[int, int]], Still]  # a picture not read or converted yet: called with (width, height) it is


def is_picture(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in PICTURES


def is_pattern(path: Path) -> bool:
    """`%04d.png` or `*.jpg`"""
    return is_picture(path) and _PLACE.search(path.name) is not None


def picture_files(path: Path) -> list[Path] | None:
    """The pictures that a path means, in the order of their numbers; None where it means no pictures."""
    if path.is_dir():
        return _in_order(file for file in visible(path) if is_picture(file))
    if path.is_file():
        return [path] if is_picture(path) else None
    return fitting_pattern(path) if is_pattern(path) else None


def visible(folder: Path) -> Iterator[Path]:
    """Its files, but for those that systems hide there."""
    return (file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())


def fitting_pattern(pattern: Path) -> list[Path]:
    """The files that a pattern means, in the order of their numbers."""
    ends = [0, *(end for place in _PLACE.finditer(pattern.name) for end in place.span()), len(pattern.name)]
    plain = [re.escape(pattern.name[a:b]) for a, b in zip(ends[::2], ends[1::2], strict=True)]
    places = [
        ".*" if place[0] == "*" else rf"\d{{{int(place['digits'] or 1)},}}" for place in _PLACE.finditer(pattern.name)
    ]
    fits = re.compile("".join(part for both in zip(plain, [*places, ""], strict=True) for part in both))
    if not pattern.parent.is_dir():
        return []
    return _in_order(file for file in visible(pattern.parent) if fits.fullmatch(file.name))


def numbered(pattern: Path, number: int) -> Path:
    """`out/%05d.png`, 7 -> `out/00007.png`. Raises FilmError unless the pattern has one place for a number."""
    places = list(_PLACE.finditer(pattern.name))
    if len(places) != 1 or places[0][0] == "*":
        raise FilmError(f"{pattern} needs one number in its name, and no star: out/%05d.png.")
    (place,) = places
    digits = f"{number:0{place['digits'] or 1}d}"
    return pattern.with_name(pattern.name[: place.start()] + digits + pattern.name[place.end() :])


def _in_order(files: Iterable[Path]) -> list[Path]:
    return sorted(
        files, key=lambda file: [(part.isdecimal(), part.zfill(20)) for part in re.split(r"(\d+)", file.name)]
    )


class PictureClip:
    """Pictures as a clip; they may differ in size."""

    damaged = 0

    def __init__(self, files: list[Path], fps: Fraction):
        self.files = files
        self.path = files[0]
        self.rate, self.time_base = fps, 1 / fps
        self.zero_s = Fraction(0)
        self.width, self.height = opened(files[0]).size

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int:
        """How many pictures there will be."""
        return len(self._within(start_s, end_s))

    def moments(self, start_s: Fraction = Fraction(0), end_s: Fraction | None = None) -> Iterator[Moment]:
        """The pictures, not read yet. Raises FilmError where they are."""
        return (partial(_still, file, number) for number, file in enumerate(self._within(start_s, end_s)))

    def stills(
        self, size: tuple[int, int], start_s: Fraction = Fraction(0), end_s: Fraction | None = None
    ) -> Iterator[Still]:
        """The pictures, scaled to cover `size` (width, height) and cropped."""
        return (moment(size) for moment in self.moments(start_s, end_s))

    def _within(self, start_s: Fraction, end_s: Fraction | None) -> list[Path]:
        last = len(self.files) if end_s is None else -int(-end_s * self.rate // 1)
        return self.files[-int(-start_s * self.rate // 1) : last]


def _still(file: Path, pts: int, size: tuple[int, int]) -> Still:
    frame = av.VideoFrame.from_image(opened(file))
    return Still(fitted(frame, PictureShape(), size, VideoReformatter()), pts, 1)


class BlankClip:
    """`count` black pictures, 1/fps each: what pictures are painted on that come from words alone."""

    damaged = 0
    files: tuple[Path, ...] = ()

    def __init__(self, count: int, fps: Fraction, size: tuple[int, int]):
        self.path = Path("text")
        self.count, self.rate, self.time_base = count, fps, 1 / fps
        self.width, self.height = size

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int:
        return self.count

    def moments(self, start_s: Fraction = Fraction(0), end_s: Fraction | None = None) -> Iterator[Moment]:
        return (partial(_blank, number) for number in range(self.count))


def _blank(pts: int, size: tuple[int, int]) -> Still:
    return Still(np.zeros((size[1], size[0], 3), np.uint8), pts, 1)


def opened(file: Path) -> Image.Image:
    """RGB, upright, on white paper where it is transparent. Raises FilmError."""
    try:
        return read_picture(file, FORMATS, FILES, _on_paper)
    except Unreadable as error:
        raise FilmError(f"{file} {error}.") from error


def _on_paper(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at white
        return Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (PAPER,) * 4)
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
