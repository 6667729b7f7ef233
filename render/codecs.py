"""The encoders of films, as tables: containers, codecs, and how each encoder is told about quality."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from .errors import FilmError

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings otherwise

DEFAULT_QUALITY = 80
MAX_RATE = Fraction(240)  # SVT-AV1 refuses more; frames' own times hold whatever this says

# What a file of that name holds unless --codec says otherwise.
CONTAINERS = {".mp4": "h264", ".m4v": "h264", ".mov": "h264", ".mkv": "h264", ".webm": "vp9"}


@dataclass(frozen=True)
class VideoEncoder:
    """One of FFmpeg's encoders. `quality_option` runs from `worst` (quality 1) to `best` (quality 100)."""

    name: str
    quality_option: str | None = None
    worst: float = 51
    best: float = 10
    pixel_format: str = "yuv420p"
    tag: str | None = None  # the code that players expect in mp4 and mov, where FFmpeg would choose another
    options: Mapping[str, str] = field(default_factory=dict)

    def options_for(self, quality: int) -> dict[str, str]:
        if self.quality_option is None:
            return dict(self.options)
        value = self.worst + (self.best - self.worst) * (quality - 1) / 99
        return {**self.options, self.quality_option: str(round(value))}


_QUIET_X265 = {"x265-params": "log-level=error"}
_NVENC = {"rc": "vbr", "preset": "p5"}

# By codec, hardware first; the first that this machine can open is taken.
CODECS: dict[str, tuple[VideoEncoder, ...]] = {
    "h264": (
        VideoEncoder("h264_nvenc", "cq", options=_NVENC),
        VideoEncoder("h264_videotoolbox", "q:v", 20, 90),
        VideoEncoder("h264_qsv", "global_quality", pixel_format="nv12"),
        VideoEncoder("h264_amf", "qp_i", options={"rc": "cqp"}),
        # On two cores "medium" takes 3.6 ms of the engine's time for a frame of 256x256, this 1.8, for 1.4 dB less.
        VideoEncoder("libx264", "crf", options={"preset": "veryfast"}),
    ),
    "hevc": (
        VideoEncoder("hevc_nvenc", "cq", tag="hvc1", options=_NVENC),
        VideoEncoder("hevc_videotoolbox", "q:v", 20, 90, tag="hvc1"),
        VideoEncoder("hevc_qsv", "global_quality", pixel_format="nv12", tag="hvc1"),
        VideoEncoder("hevc_amf", "qp_i", tag="hvc1", options={"rc": "cqp"}),
        VideoEncoder("libx265", "crf", 51, 12, tag="hvc1", options={"preset": "fast", **_QUIET_X265}),
    ),
    "vp9": (VideoEncoder("libvpx-vp9", "crf", 63, 15, options={"b": "0", "row-mt": "1", "cpu-used": "4"}),),
    "av1": (
        VideoEncoder("av1_nvenc", "cq", 63, 15, options=_NVENC),
        VideoEncoder("libsvtav1", "crf", 63, 15, options={"preset": "8"}),
    ),
    "prores": (VideoEncoder("prores_ks", "qscale", 20, 1, "yuv422p10le", options={"profile": "3"}),),
    "ffv1": (VideoEncoder("ffv1", pixel_format="bgr0"),),
}


@dataclass(frozen=True)
class VideoSettings:
    """What a video is encoded with. size: (width, height). time_base: seconds a unit. rate: pictures a second, on
    average."""

    encoder: VideoEncoder
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    quality: int = DEFAULT_QUALITY


LOSSLESS = VideoEncoder("ffv1", pixel_format="bgr0", options={"level": "3", "slices": "4"})


def choose(codec: str, suffix: str) -> VideoEncoder:
    """The encoder for a codec ("h264") or one by its own name ("libx264"), in a container. Raises FilmError."""
    table = {encoder.name: (encoder,) for encoders in CODECS.values() for encoder in encoders}
    candidates = CODECS.get(codec) or table.get(codec)
    if candidates is None:
        raise FilmError(f"--codec: there is no {codec!r} here; choose from {', '.join(CODECS)} or {', '.join(table)}.")
    for encoder in candidates:
        if not opens(encoder.name):
            continue
        if not _fits(encoder.name, suffix):
            raise FilmError(f"--codec: {codec} does not go into a {suffix} file; .mkv takes every codec.")
        return encoder
    raise FilmError(f"--codec: this machine cannot encode with {' or '.join(encoder.name for encoder in candidates)}.")


@cache
def opens(name: str) -> bool:
    """Can this machine encode with it? Hardware encoders are listed whether or not there is such hardware."""
    encoder = next(encoder for encoders in CODECS.values() for encoder in encoders if encoder.name == name)
    with quiet():
        try:
            context = context_of(VideoSettings(encoder, (256, 256), Fraction(1, 25), Fraction(25)))
            frame = to_frame(np.zeros((256, 256, 3), np.uint8), encoder, VideoReformatter())
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            return bool([*context.encode(frame), *context.encode(None)])
        except (av.error.FFmpegError, ValueError, RuntimeError):
            return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While something is tried that may well fail, of which FFmpeg would complain."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)
    try:
        yield
    finally:
        av.logging.set_level(level)


def _fits(name: str, suffix: str) -> bool:
    with av.open(Nowhere(), "w", format=format_of(suffix)) as output:
        return av.codec.Codec(name, "w").canonical_name in output.supported_codecs


def format_of(suffix: str) -> str:
    """FFmpeg's name of the container."""
    return {".m4v": "mp4", ".mkv": "matroska"}.get(suffix, suffix[1:])


class Nowhere:
    """A file that forgets, to try what a container takes."""

    def write(self, data: bytes) -> int:
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def tell(self) -> int:
        return 0


def context_of(settings: VideoSettings) -> av.VideoCodecContext:
    context = av.CodecContext.create(settings.encoder.name, "w")
    assert isinstance(context, av.VideoCodecContext)
    set_up(context, settings)
    return context


def set_up(context: av.VideoCodecContext, settings: VideoSettings) -> None:
    """Make a codec context ready for `to_frame`'s frames."""
    encoder = settings.encoder
    context.width, context.height = settings.size
    context.pix_fmt = encoder.pixel_format
    context.time_base, context.framerate = settings.time_base, min(settings.rate, MAX_RATE)
    context.options = encoder.options_for(settings.quality)
    context.flags |= Flags.global_header  # mp4 and its like want the codec's headers once, not in every keyframe
    if not encoder.pixel_format.startswith("bgr"):
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709


def to_frame(rgb: np.ndarray, encoder: VideoEncoder, reformatter: VideoReformatter) -> av.VideoFrame:
    """uint8 [H, W, 3] -> what the encoder takes: BT.709, limited range."""
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    if encoder.pixel_format.startswith("bgr"):
        return reformatter.reformat(frame, format=encoder.pixel_format)
    return reformatter.reformat(
        frame,
        format=encoder.pixel_format,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )
