"""What is in a video file? Its pictures in order, upright, with square pixels, each with its exact time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image, ImageOps

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
)
MAX_SIDE, MAX_PIXELS = 16_384, 64_000_000  # beyond lies no camera's picture, and gigabytes of memory a frame
HD_LINES = 720  # from here up video that does not say so is BT.709, below it BT.601
_PLACE = re.compile(r"%0?\d*d|\*")
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


class FilmError(Exception):
    """A clip cannot be read or a film cannot be written; one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Still:
    """One picture of a clip. Times are in units of the clip's time_base; `pts` counts from the film's beginning."""

    rgb: np.ndarray  # uint8 [height, width, 3]
    pts: int
    duration: int


def open_clip(path: Path, fps: Fraction = Fraction(25)) -> VideoClip | PictureClip:
    """A video file, or pictures: one, a folder of them, or a pattern such as `in/%04d.png` or `in/*.jpg`, which last
    1/fps each. Raises FilmError."""
    pictures = picture_files(path)
    if pictures:
        return PictureClip(pictures, fps)
    if is_pattern(path):
        raise FilmError(f"No picture fits {path}.")
    if path.is_dir():
        raise FilmError(f"There is no picture in {path}.")
    return VideoClip(path)


def picture_files(path: Path) -> list[Path] | None:
    """The pictures that a path means, in the order of their numbers; None where it means no pictures."""
    if path.is_dir():
        return _in_order(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    if path.is_file():
        return [path] if path.suffix.lower() in PICTURES else None
    return fitting(path) if is_pattern(path) else None


def is_pattern(path: Path) -> bool:
    """`%04d.png` or `*.jpg`"""
    return path.suffix.lower() in PICTURES and _PLACE.search(path.name) is not None


def fitting(pattern: Path) -> list[Path]:
    """The files that a pattern means, in the order of their numbers."""
    return _in_order(pattern.parent.glob(_PLACE.sub("*", pattern.name)))


def _in_order(files: Iterable[Path]) -> list[Path]:
    return sorted(
        files, key=lambda file: [(part.isdecimal(), part.zfill(20)) for part in re.split(r"(\d+)", file.name)]
    )


@dataclass(frozen=True)
class Shape:
    """How coded pixels become shown ones. matrix: (a, b, c, d) of x' = ax + cy, y' = bx + dy (ISO 14496-12, 6.2.2)."""

    sample_aspect: Fraction = Fraction(1)  # a pixel's width over its height
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)

    @property
    def lies(self) -> bool:
        """On its side, as telephones hold their cameras."""
        a, b, _, _ = self.matrix
        return abs(b) > abs(a)

    def upright(self, rgb: np.ndarray) -> np.ndarray:
        a, b, c, d = self.matrix
        if self.lies:
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        return rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class PictureClip:
    """Pictures as a clip; they may differ in size."""

    has_sound = False
    damaged = 0

    def __init__(self, files: list[Path], fps: Fraction):
        self.files = files
        self.path = files[0]
        self.rate, self.time_base = fps, 1 / fps
        self.zero_s = Fraction(0)
        first = self._open(files[0])
        self.width, self.height = first.size

    @property
    def is_single(self) -> bool:
        return len(self.files) == 1

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int | None:
        return len(self._within(start_s, end_s))

    def stills(self, size: tuple[int, int], start_s: Fraction = Fraction(0), end_s=None) -> Iterator[Still]:
        reformatter = VideoReformatter()
        for number, file in enumerate(self._within(start_s, end_s)):
            frame = av.VideoFrame.from_image(self._open(file))
            yield Still(_fitted(frame, Shape(), size, reformatter), number, 1)

    def _within(self, start_s: Fraction, end_s: Fraction | None) -> list[Path]:
        last = len(self.files) if end_s is None else -int(-end_s * self.rate // 1)
        return self.files[-int(-start_s * self.rate // 1) : last]

    def _open(self, file: Path) -> Image.Image:
        try:
            with Image.open(file) as image:
                _check_size(file, *image.size)
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FilmError(f"{file} is not a picture that can be read.") from error


class VideoClip:
    """A file with at least one frame of video.

    width, height: as shown, in square pixels. time_base: seconds a unit. rate: frames a second, on average. zero_s: the
    file's own time at its beginning. damaged: packets that could not be decoded so far, and were left out.
    """

    is_single = False

    def __init__(self, path: Path):
        self.path = path
        self.damaged = 0
        with self.open() as container:
            stream = _video_of(container, path)
            _check_size(path, stream.codec_context.width, stream.codec_context.height)
            self.time_base: Fraction = stream.time_base
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.has_sound = bool(container.streams.audio)
            self._frames, self._duration_s = stream.frames, _duration_s(container, stream)
            starts = [
                s.start_time * s.time_base for s in (stream, *container.streams.audio) if s.start_time is not None
            ]
            # Sound may begin a little before zero (an encoder's priming), which containers know how to tell.
            self.zero_s = max(min(starts, default=Fraction(0)), Fraction(0))
            first = next(self._frames_of(container, stream), None)
            if first is None:
                raise FilmError(f"{path} holds no picture that can be decoded.")
            # Of the first frame: to ask each for its side data would keep all of them from being freed at once.
            self._shape = Shape(stream.sample_aspect_ratio or Fraction(1), _display_matrix(first))
            width, height = max(1, round(first.width * self._shape.sample_aspect)), first.height
            self.width, self.height = (height, width) if self._shape.lies else (width, height)
        self.damaged = 0

    def open(self) -> av.container.InputContainer:
        """The file, opened anew. Raises FilmError."""
        if not self.path.exists():
            raise FilmError(f"There is no file {self.path}.")
        if self.path.stat().st_size == 0:
            raise FilmError(f"{self.path} is empty.")
        try:
            return av.open(str(self.path))
        except av.error.FFmpegError as error:
            # FFmpeg's own reasons mislead: frames too large for it are a "busy device".
            reason = f" ({error.strerror})" if isinstance(error, av.error.PermissionError) else ""
            raise FilmError(f"{self.path} is not a video that can be read{reason}.") from error

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int | None:
        """About how many pictures there will be; None where the file does not tell."""
        whole = self._frames or (round(self._duration_s * self.rate) if self._duration_s else 0)
        if not whole:
            return None
        if start_s == 0 and end_s is None:
            return whole
        until_s = whole / self.rate if end_s is None else min(end_s, whole / self.rate)
        return max(0, round((until_s - start_s) * self.rate))

    def stills(
        self, size: tuple[int, int], start_s: Fraction = Fraction(0), end_s: Fraction | None = None
    ) -> Iterator[Still]:
        """The pictures shown from start_s on and before end_s, scaled to cover `size` (width, height) and cropped.

        Without timestamps a frame follows its predecessor at the average rate. A damaged packet is left out and
        counted.
        """
        with self.open() as container:
            stream = _video_of(container, self.path)
            stream.thread_type = "AUTO"
            if start_s > 0:
                container.seek(int((self.zero_s + start_s) * av.time_base), backward=True)
            reformatter = VideoReformatter()
            usual = max(1, round(1 / self.rate / self.time_base))
            zero = round((self.zero_s + start_s) / self.time_base)
            next_pts = zero
            for frame in self._frames_of(container, stream):
                pts = next_pts if frame.pts is None else frame.pts
                if pts < zero:
                    continue
                if end_s is not None and pts * self.time_base >= self.zero_s + end_s:
                    break
                pts = max(pts, next_pts if frame.pts is None else pts)
                yield Still(_fitted(frame, self._shape, size, reformatter), pts - zero, frame.duration or usual)
                next_pts = pts + (frame.duration or usual)

    def _frames_of(self, container, stream) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the file breaks off, or what follows is no container any more
                self.damaged += 1
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1


def _video_of(container, path: Path):
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:  # a song's cover is no video
            return stream
    raise FilmError(f"{path} holds no video, only sound." if container.streams.audio else f"{path} holds no video.")


def _duration_s(container, stream) -> Fraction | None:
    if stream.duration is not None:
        return stream.duration * stream.time_base
    return None if container.duration is None else Fraction(container.duration, av.time_base)


def _check_size(path: Path, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 10**6} megapixels or {MAX_SIDE} a side"
        raise FilmError(f"{path} is {width}x{height}: pictures larger than {limit} are not read.")


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Shape.matrix, as the file gives it."""
    for side in frame.side_data:
        if side.type == SideData.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(side), np.int32)
            return int(a), int(b), int(c), int(d)
    return 1, 0, 0, 1


def _fitted(frame: av.VideoFrame, shape: Shape, size: tuple[int, int], reformatter: VideoReformatter) -> np.ndarray:
    """uint8 [height, width, 3] RGB of `size` (width, height): colour, pixel shape, scale in one pass; then a crop."""
    width, height = size[::-1] if shape.lies else size
    shown = frame.width * shape.sample_aspect
    scale = max(width / shown, Fraction(height, frame.height))
    to_width, to_height = max(width, round(shown * scale)), max(height, round(frame.height * scale))
    is_rgb = frame.format.is_rgb
    hd = frame.height >= HD_LINES
    colorspace = (Colorspace.ITU709 if hd else Colorspace.ITU601) if frame.colorspace == UNSPECIFIED else None
    full = is_rgb or frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    rgb = reformatter.reformat(
        frame,
        to_width,
        to_height,
        "rgb24",
        src_colorspace=None if is_rgb else colorspace,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()
    left, top = (to_width - width) // 2, (to_height - height) // 2
    return np.ascontiguousarray(shape.upright(rgb[top : top + height, left : left + width]))
