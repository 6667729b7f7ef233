"""How does a clip's sound get into the film? As it is, packet by packet, or encoded anew where the container must."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av

from . import codecs
from .clip import VideoClip, packets_of, seek, tracks_of
from .errors import FilmError
from .times import Timeline

ENCODERS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".mkv": "libopus", ".webm": "libopus"}
BIT_RATE = 64_000  # a channel
PRIMING_S = Fraction(1, 10)  # what an encoder may put before zero; more is pre-roll that an edit list hides
SEEK_BACK_S = (2, 10, 60)  # containers store sound up to a second or so away from its picture


@dataclass(frozen=True)
class Way:
    """How one track goes into the film; as it is where there is no encoder."""

    encoder: str | None = None
    rate: int = 0
    layout: str = ""


def ways(clip: VideoClip, suffix: str) -> dict[int, Way]:
    """For each sound track, by its number in the clip's file. Raises FilmError."""
    with clip.open() as source:
        return {stream.index: _way(clip, stream, suffix) for stream in tracks_of(source)}


def _way(clip: VideoClip, stream, suffix: str) -> Way:
    if _holds(suffix, stream):
        return Way()
    encoder = ENCODERS[suffix]
    rate = 48_000
    if encoder == "aac":
        rate = min(av.codec.Codec(encoder, "w").audio_rates, key=lambda rate: abs(rate - stream.codec_context.rate))
    usual = {1: "mono", 6: "5.1", 8: "7.1"}.get(stream.codec_context.channels, "stereo")
    for layout in (stream.codec_context.layout.name, usual, "stereo"):
        way = Way(encoder, rate, layout)
        if _opens(way):
            return way
    raise FilmError(f"The sound of {clip.path} can neither be copied into a {suffix} file nor encoded for it.")


def _holds(suffix: str, stream) -> bool:
    """Does the container take the track as it is? Some say so of codecs that they then refuse: try."""
    with codecs.quiet():
        try:
            with av.open(codecs.Nowhere(), "w", format=codecs.format_of(suffix)) as output:
                output.add_stream_from_template(stream)
                output.start_encoding()
            return True
        except (av.error.FFmpegError, ValueError):
            return False


def _opens(way: Way) -> bool:
    with codecs.quiet():
        try:
            context = av.CodecContext.create(way.encoder, "w")
            context.sample_rate, context.layout = way.rate, way.layout
            context.format, context.bit_rate = context.codec.audio_formats[0], BIT_RATE
            context.open()
            return True
        except (av.error.FFmpegError, ValueError):
            return False


def add_sound(
    clip: VideoClip,
    output: av.container.OutputContainer,
    ways: dict[int, Way],
    start_s: Fraction,
    end_s: Fraction | None,
) -> Iterator[av.Packet]:
    """Add the tracks to `output` at once; then their packets in order, for `output` to mux.

    Times are moved so that start_s is 0. What begins at end_s or later is left out. Damage is counted in clip.damaged.
    """
    source = clip.open()
    part = _Part(clip.zero_s + start_s, None if end_s is None else end_s - start_s, whole=start_s == 0)
    tracks = {
        index: (
            _Encoded(clip, source.streams[index], output, way) if way.encoder else _Copied(clip, source, index, output)
        )
        for index, way in ways.items()
    }
    return _packets(clip, source, tracks, part)


@dataclass(frozen=True)
class _Part:
    """Which part of the clip. zero_s: in the file's own time; until_s: counted from there."""

    zero_s: Fraction
    until_s: Fraction | None
    whole: bool

    def is_over(self, begins_s: Fraction) -> bool:
        return self.until_s is not None and begins_s >= self.until_s


def _packets(clip: VideoClip, source, tracks: dict, part: _Part) -> Iterator[av.Packet]:
    with source:
        streams = [source.streams[index] for index in tracks]
        try:
            for packet in (
                packets_of(source, streams) if part.whole else _packets_from(clip, part.zero_s, source, streams)
            ):
                yield from tracks[packet.stream.index].take(packet, part)
                if all(track.is_over for track in tracks.values()):
                    break
        except av.error.FFmpegError:  # a file that breaks off has no more sound than that
            clip.damaged += 1
        for track in tracks.values():
            yield from track.end()


def _packets_from(clip: VideoClip, at_s: Fraction, source, streams) -> Iterator[av.Packet]:
    """The packets from at_s, or a little earlier, on. Like pictures, where no seek leads there: all."""
    for back_s in SEEK_BACK_S:
        if at_s - back_s <= clip.zero_s or not seek(source, at_s - back_s):
            break
        packets = packets_of(source, streams)
        firsts: dict[int, Fraction] = {}
        held = []
        for packet in packets:
            held.append(packet)
            if packet.dts is not None:
                firsts.setdefault(packet.stream.index, packet.dts * packet.time_base)
                if packet.dts * packet.time_base > at_s:
                    break
        if firsts and max(firsts.values()) <= at_s:
            return chain(held, packets)
    return packets_of(clip.open(), streams)


class _Copied:
    def __init__(self, clip: VideoClip, source, index: int, output):
        stream = source.streams[index]
        self._clip = clip
        self._target = output.add_stream_from_template(stream)
        _keep_description(stream, self._target)
        # mp4 can begin within a packet; elsewhere all that follows would move by what lies before zero.
        self._can_begin_early = output.format.name in ("mp4", "mov")
        self._timeline = Timeline(stream.time_base, strictly=self._can_begin_early)
        self.is_over = False

    def take(self, packet, part: _Part) -> Iterator[av.Packet]:
        if packet.dts is None:
            return
        dts = self._timeline.placed(packet.dts, packet.duration or 0)
        if dts != packet.dts + self._timeline.offset:
            self._clip.damaged += 1  # damaged files tell the same time twice, which no container takes
            return
        zero = round(part.zero_s / packet.time_base) - self._timeline.offset
        begins = (packet.dts if packet.pts is None else packet.pts) - zero
        self.is_over = part.is_over(begins * packet.time_base)
        if self.is_over or self._is_early(begins, packet, part):
            return
        packet.pts, packet.dts = begins, packet.dts - zero
        packet.stream = self._target
        yield packet

    def _is_early(self, begins: int, packet, part: _Part) -> bool:
        ends_s = (begins + (packet.duration or 0)) * packet.time_base
        if part.whole:
            return ends_s < -PRIMING_S
        return ends_s <= 0 if self._can_begin_early else begins < 0

    def end(self) -> Iterator[av.Packet]:
        return iter(())


class _Encoded:
    def __init__(self, clip: VideoClip, stream, output, way: Way):
        self._clip = clip
        self._target = output.add_stream(way.encoder, rate=way.rate, layout=way.layout)
        self._target.codec_context.bit_rate = BIT_RATE * self._target.codec_context.channels
        _keep_description(stream, self._target)
        self._timeline = Timeline(stream.time_base, strictly=False)  # TrueHD's packets are shorter than Matroska's unit
        self._resampler = self._new_resampler()
        self.is_over = False

    def take(self, packet, part: _Part) -> Iterator[av.Packet]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:  # a moment of silence
            self._clip.damaged += 1
            return
        for frame in frames:
            if frame.pts is None:
                continue
            duration = round(frame.samples / frame.sample_rate / frame.time_base)
            begins_s = self._timeline.placed(frame.pts, duration) * frame.time_base - part.zero_s
            self.is_over = part.is_over(begins_s)
            if begins_s < 0 or self.is_over:
                continue
            frame.pts = round(begins_s / frame.time_base)
            for piece in self._resampled(frame):
                yield from self._target.encode(piece)

    def end(self) -> Iterator[av.Packet]:
        for piece in self._resampler.resample(None):
            yield from self._target.encode(piece)
        yield from self._target.encode(None)

    def _resampled(self, frame) -> Iterator[av.AudioFrame]:
        try:
            yield from self._resampler.resample(frame)
        except ValueError:  # broadcasts change from stereo to surround in the middle
            yield from self._resampler.resample(None)
            self._resampler = self._new_resampler()
            yield from self._resampler.resample(frame)

    def _new_resampler(self) -> av.AudioResampler:
        context = self._target.codec_context
        return av.AudioResampler(context.format, context.layout, context.sample_rate, context.frame_size or 960)


def _keep_description(stream, target) -> None:
    for name in ("language", "title"):
        if name in stream.metadata:
            target.metadata[name] = stream.metadata[name]
