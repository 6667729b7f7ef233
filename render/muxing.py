"""Pictures become a film: a video muxed with its sound, a GIF, or picture files."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.filter.context import FilterContext
from PIL import Image

from . import codecs
from .clip import Clip, VideoClip, url
from .errors import FilmError
from .pictures import PICTURES, is_pattern, numbered
from .segments import SegmentEncoder, WorkFolder
from .sound import FilmSound

MP4_LIKE = (".mp4", ".m4v", ".mov")
HUNDREDTH_S = Fraction(1, 100)  # what a GIF tells times in


@dataclass(frozen=True)
class FilmSettings:
    """What film is to be made of a clip. size: (width, height) of its pictures."""

    clip: Clip
    path: Path
    size: tuple[int, int]
    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    codec: str | None = None
    quality: int = codecs.DEFAULT_QUALITY

    def video(self, encoder: codecs.VideoEncoder) -> codecs.VideoSettings:
        return codecs.VideoSettings(encoder, self.size, self.clip.time_base, self.clip.rate, self.quality)


class Film(Protocol):
    """Where pictures go. `work.done` of them are there from an earlier run; the caller puts those that follow."""

    work: WorkFolder
    description: str

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        """The next picture, uint8 [height, width, 3]; times in the clip's time_base."""

    def finish(self, complete: bool) -> None:
        """Make the file of all that was put. An incomplete one can still be resumed."""

    def abandon(self) -> None:
        """Put no more, whatever happened; what was put stays in `work` as far as it can be written."""


def film_for(settings: FilmSettings) -> Film:
    """The kind of film that the file's name asks for. Raises FilmError."""
    suffix = settings.path.suffix.lower()
    if settings.codec is not None and suffix not in codecs.CONTAINERS:
        raise FilmError(f"--codec is for videos: {settings.path} is none.")
    if suffix == ".gif":
        return GifFilm(settings)
    if suffix in PICTURES:
        return PictureFilm(settings)
    if suffix in codecs.CONTAINERS:
        return VideoFilm(settings)
    known = ", ".join([*codecs.CONTAINERS, ".gif", ".png", ".jpg"])
    raise FilmError(f"{settings.path} is of no kind that can be written; end its name in {known}.")


class VideoFilm:
    """Video with the clip's own sound."""

    def __init__(self, settings: FilmSettings):
        suffix = settings.path.suffix.lower()
        self.encoder = codecs.choose(settings.codec or codecs.CONTAINERS[suffix], suffix)
        if self.encoder.pixel_format.startswith(("yuv420", "nv12")) and (settings.size[0] % 2 or settings.size[1] % 2):
            raise FilmError(f"{self.encoder.name} takes even sizes only, not {settings.size[0]}x{settings.size[1]}.")
        self.description = self.encoder.name
        self.work = WorkFolder(settings.path)
        self._settings = settings
        self._video_settings = settings.video(self.encoder)
        self._segments = SegmentEncoder(self.work, self._video_settings)
        self._sound = None
        if isinstance(settings.clip, VideoClip) and settings.clip.has_sound:
            self._sound = FilmSound(settings.clip, suffix)

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        self._segments.put(picture, pts, duration)

    def abandon(self) -> None:
        self._segments.abandon()

    def finish(self, complete: bool) -> None:
        self._segments.close()
        settings = self._settings
        done = self.work.part()
        options = {}
        if settings.path.suffix.lower() in MP4_LIKE:
            # Edit lists, which say when a track begins, count in the movie's timescale: milliseconds unless told.
            units = settings.clip.time_base.denominator
            options = {"movflags": "+faststart", "movie_timescale": str(units * max(1, -(-90_000 // units)))}
        # A film of a part of the clip has that part of its sound.
        end_s = settings.end_s if complete else settings.start_s + self._ends_s()
        with av.open(url(done), "w", format=codecs.format_of(settings.path.suffix.lower()), options=options) as output:
            video = output.add_stream(self.encoder.name, rate=settings.clip.rate)
            assert isinstance(video, av.VideoStream)
            codecs.set_up(video.codec_context, self._video_settings)
            if self.encoder.tag and settings.path.suffix.lower() in MP4_LIKE:
                video.codec_context.codec_tag = self.encoder.tag
            tracks = [self._video(video)]
            if self._sound is not None:
                tracks.append(self._sound.add_to(output, settings.start_s, end_s))
            for packet in heapq.merge(*tracks, key=_decoded_at_s):
                try:
                    output.mux(packet)
                except (av.error.InvalidDataError, av.error.ArgumentError):
                    if packet.stream is video:
                        raise
                    settings.clip.damaged += 1  # a broken packet of sound is not worth a film
        os.replace(done, settings.path)

    def _video(self, stream: av.VideoStream) -> Iterator[av.Packet]:
        delay, end = None, 0
        for packet, following in pairwise(chain(self._segments.packets(), [None])):
            assert packet is not None
            assert packet.pts is not None
            assert packet.dts is not None
            if delay is None:
                delay = packet.pts - packet.dts
            end = max(end, _end(packet))
            if following is None:
                # mp4 adds up how long packets are decoded: together as long as the pictures are shown.
                packet.duration = max(1, min(end - delay - packet.dts, end - packet.pts))
            packet.stream = stream
            yield packet

    def _ends_s(self) -> Fraction:
        return max(_end(packet) for packet in self._segments.last_packets()) * self._settings.clip.time_base


def _end(packet: av.Packet) -> int:
    assert packet.pts is not None
    assert packet.duration is not None
    return packet.pts + packet.duration


def _decoded_at_s(packet: av.Packet) -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


class GifFilm:
    """An animated GIF with one palette for all of it, made when all pictures are known."""

    def __init__(self, settings: FilmSettings):
        self.description = "gif"
        self.work = WorkFolder(settings.path)
        self._settings = settings
        self._segments = SegmentEncoder(self.work, settings.video(codecs.LOSSLESS))

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        self._segments.put(picture, pts, duration)

    def abandon(self) -> None:
        self._segments.abandon()

    def finish(self, complete: bool) -> None:
        self._segments.close()
        palette = self._palette()
        done = self.work.part()
        options = {"loop": "0", "final_delay": str(self._last_delay())}
        with av.open(url(done), "w", format="gif", options=options) as output:
            stream = output.add_stream("gif", rate=self._settings.clip.rate)
            stream.width, stream.height = self._settings.size
            stream.pix_fmt = "pal8"
            stream.codec_context.time_base = HUNDREDTH_S
            for frame in self._mapped(palette):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        os.replace(done, self._settings.path)

    def _last_delay(self) -> int:
        """How long the last picture is shown, in hundredths of a second."""
        duration = self._segments.last_packets()[-1].duration
        assert duration is not None
        return max(1, round(duration * self._settings.clip.time_base / HUNDREDTH_S))

    def _frames(self) -> Iterator[av.VideoFrame]:
        last = -1
        for frame in self._segments.decoded():
            assert frame.pts is not None
            last = max(last + 1, round(frame.pts * self._settings.clip.time_base / HUNDREDTH_S))
            frame.pts, frame.time_base = last, HUNDREDTH_S
            yield frame

    def _palette(self) -> av.VideoFrame:
        graph, source = self._graph()
        generate, sink = graph.add("palettegen", "stats_mode=full"), graph.add("buffersink")
        source.link_to(generate)
        generate.link_to(sink)
        graph.configure()
        for frame in self._frames():
            source.push(frame)
        source.push(None)
        palette = sink.pull()
        assert isinstance(palette, av.VideoFrame)
        return palette

    def _mapped(self, palette: av.VideoFrame) -> Iterator[av.VideoFrame]:
        graph, source = self._graph()
        colours = _buffer(graph, (palette.width, palette.height), palette.format.name)
        use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
        source.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        palette.pts, palette.time_base = 0, HUNDREDTH_S
        colours.push(palette)
        colours.push(None)
        for frame in self._frames():
            source.push(frame)
            yield from _pulled(sink)
        source.push(None)
        yield from _pulled(sink)

    def _graph(self) -> tuple[av.filter.Graph, FilterContext]:
        graph = av.filter.Graph()
        return graph, _buffer(graph, self._settings.size, codecs.LOSSLESS.pixel_format)


def _buffer(graph: av.filter.Graph, size: tuple[int, int], pixel_format: str) -> FilterContext:
    width, height = size
    return graph.add(
        "buffer",
        video_size=f"{width}x{height}",
        pix_fmt=pixel_format,
        time_base=str(HUNDREDTH_S),
        pixel_aspect="1/1",
    )


def _pulled(sink: FilterContext) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        assert isinstance(frame, av.VideoFrame)
        yield frame


class PictureFilm:
    """One file for each picture, or one picture; every file appears whole under its name."""

    def __init__(self, settings: FilmSettings):
        self._is_sequence = is_pattern(settings.path)
        if self._is_sequence:
            numbered(settings.path, 1)
        elif settings.clip.expected(settings.start_s, settings.end_s) != 1:
            raise FilmError(
                f"{settings.path} holds one picture only; for many, put a number in its name: out/%05d.png."
            )
        self.description = settings.path.suffix[1:].lower()
        self.work = WorkFolder(settings.path)
        self._settings = settings

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        file = self._settings.path
        if self._is_sequence:
            file = numbered(file, self.work.done + 1)
        part = self.work.part()
        quality = {"quality": self._settings.quality} if file.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
        Image.fromarray(picture).save(part, Image.registered_extensions()[file.suffix.lower()], **quality)
        os.replace(part, file)
        self.work.seal(1)

    def finish(self, complete: bool) -> None:
        """Each picture is a whole file once it is put."""

    def abandon(self) -> None:
        """Nothing is open either."""
