"""How do pictures become a file? A video, a GIF or a sequence of pictures; all of them resume after a kill."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from . import codecs
from .clip import VideoClip, url
from .errors import FilmError
from .packets import PacketFile, read_packets
from .pictures import PICTURES, PictureClip, is_pattern, numbered
from .segments import Work
from .sound import add_sound, ways

MP4_LIKE = (".mp4", ".m4v", ".mov")
SEGMENT = 24  # pictures: a kill loses them and those in hand; each segment starts with a keyframe


@dataclass(frozen=True)
class Order:
    """What film is to be made of a clip. size: (width, height) of its pictures."""

    clip: VideoClip | PictureClip
    path: Path
    size: tuple[int, int]
    start_s: Fraction = Fraction(0)
    end_s: Fraction | None = None
    codec: str | None = None
    quality: int = codecs.DEFAULT_QUALITY


class Film(Protocol):
    """Where pictures go. `work.done` of them are there from an earlier run; the caller puts those that follow."""

    work: Work
    description: str

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        """The next picture, uint8 [height, width, 3]; times in the clip's time_base."""

    def finish(self, complete: bool) -> None:
        """Make the file of all that was put. An incomplete one can still be resumed."""

    def abandon(self) -> None:
        """Put no more, whatever happened; what was put stays in `work` as far as it can be written."""


def order_film(order: Order) -> Film:
    """The kind of film that the file's name asks for. Raises FilmError."""
    suffix = order.path.suffix.lower()
    if order.codec is not None and suffix not in codecs.CONTAINERS:
        raise FilmError(f"--codec is for videos: {order.path} is none.")
    if suffix == ".gif":
        return GifFilm(order)
    if suffix in PICTURES:
        return PictureFilm(order)
    if suffix in codecs.CONTAINERS:
        return VideoFilm(order)
    known = ", ".join([*codecs.CONTAINERS, ".gif", ".png", ".jpg"])
    raise FilmError(f"{order.path} is of no kind that can be written; end its name in {known}.")


class _Segments:
    """Pictures encoded into segments of the work folder."""

    def __init__(self, order: Order, work: Work, encoder: codecs.Encoder):
        self._order, self._work, self._encoder = order, work, encoder
        self._reformatter = VideoReformatter()
        self._output: PacketFile | None = None
        self._durations: dict[int, int] = {}
        self._count = 0

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        if self._output is None:
            self._open()
        try:
            frame = codecs.to_frame(picture, self._encoder, self._reformatter)
            frame.pts, frame.time_base = pts, self._order.clip.time_base
            self._durations[pts] = duration
            self._write(self._context.encode(frame))
        except BaseException:
            self._let_go()  # a segment that misses a picture is none
            raise
        self._count += 1
        if (self._work.done + self._count) % SEGMENT == 0:
            self.close()

    def close(self) -> None:
        """Complete the segment in work, if there is one."""
        if self._output is None:
            return
        try:
            self._write(self._context.encode(None))
            self._output.close()
            self._work.seal(self._count, self._work.part())
        finally:
            self._let_go()

    def abandon(self) -> None:
        with contextlib.suppress(OSError, av.error.FFmpegError):  # what has happened is told already
            self.close()

    def _let_go(self) -> None:
        output, self._output, self._count = self._output, None, 0
        self._durations.clear()
        output.close()

    def _open(self) -> None:
        self._set_up()
        self._output = PacketFile(self._work.part())

    def _set_up(self) -> None:
        order = self._order
        self._context = av.CodecContext.create(self._encoder.name, "w")
        codecs.set_up(self._context, self._encoder, order.size, order.clip.time_base, order.clip.rate, order.quality)

    def _write(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # Encoders lose the durations, and with the last one the film's.
            self._output.write(packet, self._durations.pop(packet.pts))

    def decoded(self) -> Iterator[av.VideoFrame]:
        """The pictures of all segments, of a codec without inter-frame prediction."""
        self._set_up()
        decoder = av.CodecContext.create(self._encoder.name, "r")
        self._context.open()
        decoder.extradata, decoder.pix_fmt = self._context.extradata, self._encoder.pixel_format
        decoder.width, decoder.height = self._order.size
        for packet in _packets(self._work, self._order.clip.time_base):
            yield from decoder.decode(packet)
        yield from decoder.decode(None)


def _packets(work: Work, time_base: Fraction) -> Iterator[av.Packet]:
    """All segments' packets; decoding times strictly increase."""
    last = None
    for _, _, file in work.segments():
        for packet in read_packets(file, time_base):
            # Each segment's encoder begins its decoding times anew, a few frames ahead of its first picture.
            if last is not None and packet.dts <= last:
                packet.dts = last + 1
            last = packet.dts
            yield packet


class VideoFilm:
    """Video with the clip's own sound."""

    def __init__(self, order: Order):
        suffix = order.path.suffix.lower()
        self.encoder = codecs.choose(order.codec or codecs.CONTAINERS[suffix], suffix)
        if self.encoder.pixel_format.startswith(("yuv420", "nv12")) and (order.size[0] % 2 or order.size[1] % 2):
            raise FilmError(f"{self.encoder.name} takes even sizes only, not {order.size[0]}x{order.size[1]}.")
        self.description = self.encoder.name
        self.work = Work(order.path)
        self._order = order
        self._sound = ways(order.clip, suffix) if order.clip.has_sound else {}
        self._segments = _Segments(order, self.work, self.encoder)

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        self._segments.put(picture, pts, duration)

    def abandon(self) -> None:
        self._segments.abandon()

    def finish(self, complete: bool) -> None:
        self._segments.close()
        order = self._order
        done = self.work.part()
        options = {}
        if order.path.suffix.lower() in MP4_LIKE:
            # Edit lists, which say when a track begins, count in the movie's timescale: milliseconds unless told.
            units = order.clip.time_base.denominator
            options = {"movflags": "+faststart", "movie_timescale": str(units * max(1, -(-90_000 // units)))}
        # A film of a part of the clip has that part of its sound.
        end_s = order.end_s if complete else order.start_s + self._ends_s()
        with av.open(url(done), "w", format=codecs.format_of(order.path.suffix.lower()), options=options) as output:
            video = output.add_stream(self.encoder.name, rate=order.clip.rate)
            codecs.set_up(
                video.codec_context, self.encoder, order.size, order.clip.time_base, order.clip.rate, order.quality
            )
            if self.encoder.tag and order.path.suffix.lower() in MP4_LIKE:
                video.codec_context.codec_tag = self.encoder.tag
            tracks = [self._video(video)]
            if self._sound:
                tracks.append(add_sound(order.clip, output, self._sound, order.start_s, end_s))
            for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
                try:
                    output.mux(packet)
                except (av.error.InvalidDataError, av.error.ArgumentError):
                    if packet.stream is video:
                        raise
                    order.clip.damaged += 1  # a broken packet of sound is not worth a film
        os.replace(done, order.path)

    def _video(self, stream) -> Iterator[av.Packet]:
        delay, end = None, 0
        packets = _packets(self.work, self._order.clip.time_base)
        for packet, following in pairwise(chain(packets, [None])):
            if delay is None:
                delay = packet.pts - packet.dts
            end = max(end, packet.pts + packet.duration)
            if following is None:
                # mp4 adds up how long packets are decoded: together as long as the pictures are shown.
                packet.duration = max(1, min(end - delay - packet.dts, end - packet.pts))
            packet.stream = stream
            yield packet

    def _ends_s(self) -> Fraction:
        last = self.work.segments()[-1][2]
        time_base = self._order.clip.time_base
        return max(packet.pts + packet.duration for packet in read_packets(last, time_base)) * time_base


class GifFilm:
    """An animated GIF with one palette for all of it, made when all pictures are known."""

    def __init__(self, order: Order):
        self.description = "gif"
        self.work = Work(order.path)
        self._order = order
        self._segments = _Segments(order, self.work, codecs.LOSSLESS)

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
            stream = output.add_stream("gif", rate=self._order.clip.rate)
            stream.width, stream.height = self._order.size
            stream.pix_fmt = "pal8"
            stream.codec_context.time_base = Fraction(1, 100)
            for frame in self._mapped(palette):
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        os.replace(done, self._order.path)

    def _last_delay(self) -> int:
        """How long the last picture is shown, in hundredths of a second."""
        last = self.work.segments()[-1][2]
        time_base = self._order.clip.time_base
        return max(1, round([packet.duration for packet in read_packets(last, time_base)][-1] * time_base * 100))

    def _frames(self) -> Iterator[av.VideoFrame]:
        last = -1
        for frame in self._segments.decoded():
            last = max(last + 1, round(frame.pts * self._order.clip.time_base * 100))
            frame.pts, frame.time_base = last, Fraction(1, 100)
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
        return sink.pull()

    def _mapped(self, palette: av.VideoFrame) -> Iterator[av.VideoFrame]:
        graph, source = self._graph()
        colours = graph.add_buffer(
            width=palette.width, height=palette.height, format=palette.format.name, time_base=Fraction(1, 100)
        )
        use, sink = graph.add("paletteuse", "dither=sierra2_4a"), graph.add("buffersink")
        source.link_to(use, 0, 0)
        colours.link_to(use, 0, 1)
        use.link_to(sink)
        graph.configure()
        palette.pts, palette.time_base = 0, Fraction(1, 100)
        colours.push(palette)
        colours.push(None)
        for frame in self._frames():
            source.push(frame)
            yield from _pulled(sink)
        source.push(None)
        yield from _pulled(sink)

    def _graph(self) -> tuple[av.filter.Graph, Any]:
        graph = av.filter.Graph()
        width, height = self._order.size
        pixels = codecs.LOSSLESS.pixel_format
        return graph, graph.add_buffer(width=width, height=height, format=pixels, time_base=Fraction(1, 100))


def _pulled(sink) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return


class PictureFilm:
    """One file for each picture, or one picture; every file appears whole under its name."""

    def __init__(self, order: Order):
        self._is_sequence = is_pattern(order.path)
        if self._is_sequence:
            numbered(order.path, 1)
        elif order.clip.expected(order.start_s, order.end_s) != 1:
            raise FilmError(f"{order.path} holds one picture only; for many, put a number in its name: out/%05d.png.")
        self.description = order.path.suffix[1:].lower()
        self.work = Work(order.path)
        self._order = order

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        file = self._order.path
        if self._is_sequence:
            file = numbered(file, self.work.done + 1)
        part = self.work.part()
        quality = {"quality": self._order.quality} if file.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
        Image.fromarray(picture).save(part, Image.registered_extensions()[file.suffix.lower()], **quality)
        os.replace(part, file)
        self.work.seal(1)

    def finish(self, complete: bool) -> None:
        """Each picture is a whole file once it is put."""

    def abandon(self) -> None:
        """Nothing is open either."""
