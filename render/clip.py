"""The clip that a path means; of a video file its pictures in order, upright, in square pixels, at exact times."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol, cast

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from .errors import FilmError
from .fitting import PictureShape, check_size, fitted
from .pictures import Moment, PictureClip, Still, picture_files

VIDEOS = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
)
# A seek may lead too far, by a format's nature or by a wrong index: then from so much earlier, at last from the start.
SEEK_BACK_S = (0, 2, 10, 60)
JUMP_S = 1  # a track that goes back further begins anew: files that were joined as they are


def open_clip(path: Path, fps: Fraction = Fraction(25)) -> VideoClip | PictureClip:
    """A video file, or pictures: one, a folder of them, or a pattern such as `in/%04d.png` or `in/*.jpg`, which last
    1/fps each. Raises FilmError."""
    pictures = picture_files(path)
    if pictures:
        return PictureClip(pictures, fps)
    if pictures is not None:
        raise FilmError(f"There is no picture in {path}." if path.is_dir() else f"No picture fits {path}.")
    return VideoClip(path)


class Clip(Protocol):
    """Pictures with times. width, height: as shown. time_base: seconds a unit. rate: pictures a second, on average.
    files: what it is read from. damaged: places that could not be read so far, and were left out."""

    path: Path
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    damaged: int

    @property
    def files(self) -> Sequence[Path]: ...

    def expected(self, start_s: Fraction, end_s: Fraction | None) -> int | None: ...

    def moments(self, start_s: Fraction = ..., end_s: Fraction | None = ...) -> Iterator[Moment]: ...


class VideoClip:
    """A file with at least one frame of video.

    zero_s: the file's own time at its beginning.
    """

    def __init__(self, path: Path):
        self.path, self.files = path, (path,)
        self.damaged = 0
        with self.open() as container:
            stream = _video_of(container, path)
            check_size(path, stream.codec_context.width, stream.codec_context.height)
            self.time_base = time_base_of(stream)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
            self.has_sound = bool(tracks_of(container))
            self._frames, self._duration_s = stream.frames, _duration_s(container, stream)
            self._end = None if stream.duration is None else (stream.start_time or 0) + stream.duration
            self._zero_from(stream, tracks_of(container))
            first = next(self._frames_of(container, stream), None)
            if first is None:
                raise FilmError(f"{path} holds no picture that can be decoded.")
            # AVI tells when a frame is decoded, not when it is shown: so much later than the first.
            self._delay = None
            if container.format.name == "avi" and first.dts is not None:
                self._delay = first.dts - (stream.start_time or 0)
            # Of the first frame: to ask each for its side data would keep all of them from being freed at once.
            self._shape = PictureShape(stream.sample_aspect_ratio or Fraction(1), _display_matrix(first))
            self.width, self.height = self._shape.shown(first.width, first.height)
            check_size(path, self.width, self.height)
        self.damaged = 0

    def open(self) -> av.container.InputContainer:
        """The file, opened anew. Raises FilmError."""
        if not self.path.exists():
            raise FilmError(f"There is no file {self.path}.")
        if self.path.is_file() and self.path.stat().st_size == 0:
            raise FilmError(f"{self.path} is empty.")
        try:
            return av.open(url(self.path), metadata_errors="replace")
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
        """The pictures shown from start_s on and before end_s, scaled to cover `size` (width, height) and cropped."""
        return (moment(size) for moment in self.moments(start_s, end_s))

    def moments(self, start_s: Fraction = Fraction(0), end_s: Fraction | None = None) -> Iterator[Moment]:
        """The frames shown from start_s on and before end_s, not converted yet.

        Without timestamps a frame follows its predecessor at the average rate. A damaged packet is left out and
        counted.
        """
        reformatter = VideoReformatter()
        zero = round((self.zero_s + start_s) / self.time_base)
        end = None if end_s is None else math.ceil((self.zero_s + end_s) / self.time_base)
        for frame, begins, ends in self._timed(start_s):
            if end is not None and begins >= end:
                return
            if begins >= zero:
                ends = ends if end is None else min(ends, end)
                yield partial(self._still, reformatter, frame, begins - zero, ends - begins)

    def _still(
        self, reformatter: VideoReformatter, frame: av.VideoFrame, pts: int, duration: int, size: tuple[int, int]
    ) -> Still:
        return Still(fitted(frame, self._shape, size, reformatter), pts, duration)

    def _timed(self, start_s: Fraction) -> Iterator[tuple[av.VideoFrame, int, int]]:
        """(frame, when it appears, when the next one does), from start_s or earlier on."""
        timeline = Timeline(self.time_base)
        usual = max(1, round(1 / self.rate / self.time_base))
        due = round(self.zero_s / self.time_base)
        held = None
        for frame in self._frames_from(self.zero_s + start_s) if start_s > 0 else self._all_frames():
            told = self._time_of(frame)
            begins = timeline.placed(due if told is None else told, frame.duration or usual)
            due = begins + (frame.duration or usual)
            if held is not None:
                yield *held, begins
            held = frame, begins
        if held is None:
            return
        frame, begins = held
        if self._end is None:
            yield frame, begins, due
        else:  # mp4 tells how long a frame is decoded, which for the last need not be how long it is shown
            end = self._end + timeline.offset
            yield frame, begins, end if end > begins else begins + usual

    def _zero_from(self, stream: av.VideoStream, tracks: Iterable[av.AudioStream]) -> None:
        def starts_s(some: Iterable[av.stream.Stream]) -> list[Fraction]:
            return [each.start_time * time_base_of(each) for each in some if each.start_time is not None]

        # Sound may begin a little before zero (an encoder's priming), which containers know how to tell.
        sound_s = [max(start_s, Fraction(0)) for start_s in starts_s(tracks)]
        self.zero_s = min([*starts_s([stream]), *sound_s], default=Fraction(0))

    def _time_of(self, frame: av.VideoFrame) -> int | None:
        """When it is shown, as the file says."""
        if self._delay is None:
            return frame.pts
        return None if frame.dts is None else frame.dts - self._delay

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        with self.open() as container:
            yield from self._frames_of(container, _video_of(container, self.path))

    def _frames_from(self, at_s: Fraction) -> Iterator[av.VideoFrame]:
        """All frames from a keyframe at or before at_s on; where no seek leads there, all frames."""
        with self.open() as container:
            for back_s in SEEK_BACK_S:
                if at_s - back_s <= self.zero_s or not seek(container, at_s - back_s):
                    break
                before = self.damaged
                frames = self._frames_of(container, _video_of(container, self.path))
                first = self._keyframe_until(at_s, frames)
                if first is not None:
                    yield from chain([first], frames)
                    return
                self.damaged = before
        yield from self._all_frames()

    def _keyframe_until(self, at_s: Fraction, frames: Iterator[av.VideoFrame]) -> av.VideoFrame | None:
        for frame in frames:
            pts = self._time_of(frame)
            if pts is None or pts * self.time_base > at_s:
                return None
            if frame.key_frame:
                return frame
        return None

    def _frames_of(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        if not stream.codec_context.is_open:
            stream.thread_type = "AUTO"
        for packet in self._packets_of(container, stream):
            try:
                yield from stream.decode(packet)
            except av.error.FFmpegError:
                self.damaged += 1

    def _packets_of(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
        packets = packets_of(container, [stream])
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the file breaks off, or what follows is no container any more
                self.damaged += 1
                end = av.Packet()
                end.stream = stream
                yield end  # empty: the decoder gives what it still holds
                return


class Timeline:
    """Places what comes after one another on a line that rises, whatever a damaged or joined file says, in units of
    time_base. offset: how far joined parts were moved."""

    def __init__(self, time_base: Fraction, *, strictly: bool = True):
        self.offset = 0
        self._jump = round(JUMP_S / time_base)
        self._least = 1 if strictly else 0
        self._last: int | None = None
        self._end = 0

    def placed(self, time: int, duration: int) -> int:
        """Where it comes: at its own time, unless that lies before what came last."""
        here = time + self.offset
        if self._last is not None and here < self._last + self._least:
            if self._last - here > self._jump:
                self.offset += self._end - here
                here = self._end
            else:
                here = self._last + self._least
        self._last, self._end = here, here + max(1, duration)
        return here


def url(path: Path) -> str:
    """For FFmpeg, which takes what stands before a colon for a protocol."""
    return f"file:{path}"


def seek(container: av.container.InputContainer, at_s: Fraction) -> bool:
    """Whether it could be done."""
    if container.format.name == "mpeg":  # its times are half a frame off after a seek
        return False
    try:
        container.seek(int(at_s * av.time_base), backward=True)
    except av.error.FFmpegError:
        return False
    return True


def packets_of(container: av.container.InputContainer, streams: Collection[av.stream.Stream]) -> Iterator[av.Packet]:
    """The streams' packets. Not by `demux(streams)`, which trips over streams that only begin later."""
    wanted = {stream.index for stream in streams}
    return (packet for packet in container.demux() if packet.stream.index in wanted)


def tracks_of(container: av.container.InputContainer) -> list[av.AudioStream]:
    """The sound tracks that FFmpeg knows how to decode."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def time_base_of(timed: av.stream.Stream | av.frame.Frame) -> Fraction:
    """Of what FFmpeg has given times to."""
    assert timed.time_base is not None
    return timed.time_base


def _video_of(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if stream.disposition & stream.disposition.attached_pic:  # a song's cover is no video
            continue
        if stream.codec_context is None:
            raise FilmError(f"{path} is not a video that can be read: FFmpeg has no decoder for it.")
        return stream
    raise FilmError(f"{path} holds no video, only sound." if container.streams.audio else f"{path} holds no video.")


def _duration_s(container: av.container.InputContainer, stream: av.VideoStream) -> Fraction | None:
    if stream.duration is not None:
        return stream.duration * time_base_of(stream)
    return None if container.duration is None else Fraction(container.duration, av.time_base)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """PictureShape.matrix, as the file gives it."""
    side_data = cast(SideDataContainer, frame.side_data)  # the stub has a TypedDict of one key
    if SideData.DISPLAYMATRIX not in side_data:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data[SideData.DISPLAYMATRIX]), np.int32)
    return int(a), int(b), int(c), int(d)
