"""How does a clip's sound get into the film? As it is, packet by packet, or encoded anew where the container must."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av

from .clip import FilmError, VideoClip


def copied(
    clip: VideoClip, output: av.container.OutputContainer, start_s: Fraction, end_s: Fraction | None
) -> Iterator[av.Packet]:
    """Add the clip's sound tracks to `output` at once; then its packets in order, for `output` to mux.

    Times are moved so that start_s is 0. What begins at end_s or later is left out.
    """
    source = clip.open()
    tracks = {}
    for stream in source.streams.audio:
        keeps = stream.codec_context.codec.canonical_name in output.supported_codecs
        make = _Copied if keeps else _Encoded
        tracks[stream.index] = make(stream, output)
    return _packets(source, tracks, clip.zero_s + start_s, None if end_s is None else end_s - start_s)


def _packets(source, tracks, zero_s: Fraction, until_s: Fraction | None) -> Iterator[av.Packet]:
    with source:
        if not tracks:
            return
        if zero_s > 0:
            source.seek(int(zero_s * av.time_base), backward=True)
        try:
            for packet in source.demux(*source.streams.audio):
                yield from tracks[packet.stream.index].take(packet, zero_s, until_s)
        except av.error.FFmpegError as error:
            if not isinstance(error, av.error.InvalidDataError | av.error.EOFError):
                raise FilmError(f"The sound of {source.name} cannot be copied ({error.strerror}).") from error
            # A file that breaks off has no more sound than that.
        for track in tracks.values():
            yield from track.end()


class _Copied:
    def __init__(self, stream, output):
        self._target = output.add_stream_from_template(stream)
        _keep_description(stream, self._target)
        self._last_dts: int | None = None

    def take(self, packet, zero_s, until_s) -> Iterator[av.Packet]:
        if packet.dts is None:
            return
        zero = round(zero_s / packet.time_base)
        begins = packet.pts - zero
        if zero > 0 and begins + (packet.duration or 0) <= 0:
            return
        if until_s is not None and begins * packet.time_base >= until_s:
            return
        packet.pts -= zero
        packet.dts -= zero
        if self._last_dts is not None and packet.dts <= self._last_dts:
            return  # damaged files tell the same time twice, which no container takes
        self._last_dts = packet.dts
        packet.stream = self._target
        yield packet

    def end(self) -> Iterator[av.Packet]:
        return iter(())


class _Encoded:
    def __init__(self, stream, output):
        codec = output.default_audio_codec
        codec = {"opus": "libopus", "vorbis": "libopus", "mp3": "libmp3lame"}.get(codec, codec)
        rate = 48_000 if codec == "libopus" else stream.codec_context.sample_rate
        self._target = output.add_stream(codec, rate=rate, layout=_layout(stream))
        _keep_description(stream, self._target)
        self._next_pts: int | None = None
        self._rate = rate
        context = self._target.codec_context
        self._resampler = av.AudioResampler(context.format, context.layout, rate, frame_size=context.frame_size or 960)

    def take(self, packet, zero_s, until_s) -> Iterator[av.Packet]:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            return  # damaged sound is a moment of silence
        for frame in frames:
            if frame.pts is None:
                continue
            begins_s = frame.pts * frame.time_base - zero_s
            if begins_s < 0 or (until_s is not None and begins_s >= until_s):
                continue
            frame.pts = round(begins_s / frame.time_base)
            for piece in self._resampler.resample(frame):
                yield from self._target.encode(piece)

    def end(self) -> Iterator[av.Packet]:
        for piece in self._resampler.resample(None):
            yield from self._target.encode(piece)
        yield from self._target.encode(None)


def _layout(stream) -> str:
    return "mono" if stream.codec_context.channels == 1 else "stereo"


def _keep_description(stream, target) -> None:
    for name in ("language", "title"):
        if name in stream.metadata:
            target.metadata[name] = stream.metadata[name]
