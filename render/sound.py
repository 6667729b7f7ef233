"""A clip's sound in the film: copied packet by packet, or encoded anew where the container does not hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Protocol

import av

from . import codecs
from .clip import Timeline, VideoClip, packets_of, seek, time_base_of, tracks_of
from .errors import FilmError

ENCODERS = {".mp4": "aac", ".m4v": "aac", ".mov": "aac", ".mkv": "libopus", ".webm": "libopus"}
BIT_RATE = 64_000  # a channel
PRIMING_S = Fraction(1, 10)  # what an encoder may put before zero; more is pre-roll that an edit list hides
SEEK_BACK_S = (2, 10, 60)  # containers store sound up to a second or so away from its picture


@dataclass(frozen=True)
class TrackEncoding:
    """How one track goes into the film: copied where there is no encoder."""

    encoder: str | None = None
    rate: int = 0
    layout: str = ""


class FilmSound:
    """The sound tracks of a clip in a container. Raises FilmError where one does not go into it."""

    def __init__(self, clip: VideoClip, suffix: str):
        self._clip = clip
        with clip.open() as source:
            self.encodings = {stream.index: _encoding(clip, stream, suffix) for stream in tracks_of(source)}

    def add_to(
        self, output: av.container.OutputContainer, start_s: Fraction, end_s: Fraction | None
    ) -> Iterator[av.Packet]:
        """Add the tracks at once; then their packets in order, for `output` to mux.

        Times are moved so that start_s is 0. What begins at end_s or later is left out. Damage is counted in
        clip.damaged.
        """
        clip, source = self._clip, self._clip.open()
        part = _Part(clip.zero_s + start_s, None if end_s is None else end_s - start_s, whole=start_s == 0)
        of_source = {stream.index: stream for stream in tracks_of(source)}
        tracks: dict[int, _Track] = {
            index: (
                _EncodedTrack(clip, of_source[index], output, encoding)
                if encoding.encoder
                else _CopiedTrack(clip, of_source[index], output)
            )
            for index, encoding in self.encodings.items()
        }
        return _packets(clip, source, tracks, part)


def _encoding(clip: VideoClip, stream: av.AudioStream, suffix: str) -> TrackEncoding:
    if _holds(suffix, stream):
        return TrackEncoding()
    encoder = ENCODERS[suffix]
    rate = 48_000
    if encoder == "aac":
        rates = av.codec.Codec(encoder, "w").audio_rates or []
        rate = min(rates, key=lambda rate: abs(rate - stream.codec_context.rate), default=rate)
    usual = {1: "mono", 6: "5.1", 8: "7.1"}.get(stream.codec_context.channels, "stereo")
    for layout in (stream.codec_context.layout.name, usual, "stereo"):
        if _opens(encoder, rate, layout):
            return TrackEncoding(encoder, rate, layout)
    raise FilmError(f"The sound of {clip.path} can neither be copied into a {suffix} file nor encoded for it.")


def _holds(suffix: str, stream: av.AudioStream) -> bool:
    """Does the container take the track as it is? Some say so of codecs that they then refuse: try."""
    with codecs.quiet():
        try:
            with av.open(codecs.Nowhere(), "w", format=codecs.format_of(suffix)) as output:
                output.add_stream_from_template(stream)
                output.start_encoding()
            return True
        except (av.error.FFmpegError, ValueError):
            return False


def _opens(encoder: str, rate: int, layout: str) -> bool:
    with codecs.quiet():
        try:
            context = av.CodecContext.create(encoder, "w")
            assert isinstance(context, av.AudioCodecContext)
            context.sample_rate, context.layout = rate, layout
            context.format, context.bit_rate = (context.codec.audio_formats or [])[0], BIT_RATE
            context.open()
            return True
        except (av.error.FFmpegError, ValueError):
            return False


@dataclass(frozen=True)
class _Part:
    """Which part of the clip. zero_s: in the file's own time; until_s: counted from there."""

    zero_s: Fraction
    until_s: Fraction | None
    whole: bool

    def is_over(self, begins_s: Fraction) -> bool:
        return self.until_s is not None and begins_s >= self.until_s


class _Track(Protocol):
    """is_over: nothing of it comes any more in the part."""

    is_over: bool

    def take(self, packet: av.Packet, part: _Part) -> Iterator[av.Packet]: ...

    def end(self) -> Iterator[av.Packet]: ...


def _packets(
    clip: VideoClip, source: av.container.InputContainer, tracks: dict[int, _Track], part: _Part
) -> Iterator[av.Packet]:
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


def _packets_from(
    clip: VideoClip, at_s: Fraction, source: av.container.InputContainer, streams: list[av.stream.Stream]
) -> Iterator[av.Packet]:
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


class _CopiedTrack:
    def __init__(self, clip: VideoClip, stream: av.AudioStream, output: av.container.OutputContainer):
        self._clip = clip
        self._target = output.add_stream_from_template(stream)
        _keep_description(stream, self._target)
        # mp4 can begin within a packet; elsewhere all that follows would move by what lies before zero.
        self._can_begin_early = output.format.name in ("mp4", "mov")
        self._timeline = Timeline(time_base_of(stream), strictly=self._can_begin_early)
        self.is_over = False

    def take(self, packet: av.Packet, part: _Part) -> Iterator[av.Packet]:
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

    def _is_early(self, begins: int, packet: av.Packet, part: _Part) -> bool:
        ends_s = (begins + (packet.duration or 0)) * packet.time_base
        if part.whole:
            return ends_s < -PRIMING_S
        return ends_s <= 0 if self._can_begin_early else begins < 0

    def end(self) -> Iterator[av.Packet]:
        return iter(())


class _EncodedTrack:
    def __init__(
        self,
        clip: VideoClip,
        stream: av.AudioStream,
        output: av.container.OutputContainer,
        encoding: TrackEncoding,
    ):
        self._clip = clip
        target = output.add_stream(str(encoding.encoder), rate=encoding.rate, layout=encoding.layout)
        assert isinstance(target, av.AudioStream)
        self._target = target
        self._target.codec_context.bit_rate = BIT_RATE * self._target.codec_context.channels
        _keep_description(stream, self._target)
        # TrueHD's packets are shorter than Matroska's unit.
        self._timeline = Timeline(time_base_of(stream), strictly=False)
        self._resampler = self._new_resampler()
        self.is_over = False

    def take(self, packet: av.Packet, part: _Part) -> Iterator[av.Packet]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:  # a moment of silence
            self._clip.damaged += 1
            return
        for frame in frames:
            if frame.pts is None:
                continue
            assert isinstance(frame, av.AudioFrame)
            time_base = time_base_of(frame)
            duration = round(frame.samples / frame.sample_rate / time_base)
            begins_s = self._timeline.placed(frame.pts, duration) * time_base - part.zero_s
            self.is_over = part.is_over(begins_s)
            if begins_s < 0 or self.is_over:
                continue
            frame.pts = round(begins_s / time_base)
            for piece in self._resampled(frame):
                yield from self._target.encode(piece)

    def end(self) -> Iterator[av.Packet]:
        for piece in self._resampler.resample(None):
            yield from self._target.encode(piece)
        yield from self._target.encode(None)

    def _resampled(self, frame: av.AudioFrame) -> Iterator[av.AudioFrame]:
        try:
            yield from self._resampler.resample(frame)
        except ValueError:  # broadcasts change from stereo to surround in the middle
            yield from self._resampler.resample(None)
            self._resampler = self._new_resampler()
            yield from self._resampler.resample(frame)

    def _new_resampler(self) -> av.AudioResampler:
        context = self._target.codec_context
        return av.AudioResampler(context.format, context.layout, context.sample_rate, context.frame_size or 960)


def _keep_description(stream: av.AudioStream, target: av.AudioStream) -> None:
    for name in ("language", "title"):
        if name in stream.metadata:
            target.metadata[name] = stream.metadata[name]
