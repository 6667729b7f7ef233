"""The work folder, which survives a run that is killed: the segments so far, beside the film.

A segment holds encoded pictures as packets with their exact times, which a container would round or drop. Each packet:
pts, dts, duration (units of the film's time_base), whether it is a keyframe, its size, its data.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from . import codecs
from .errors import FilmError

if sys.platform != "win32":
    import fcntl

SUFFIX = ".partial"
PLAN = "plan.json"
SEGMENT = 24  # pictures: a kill loses them and those in hand; each segment starts with a keyframe
_HEADER = struct.Struct("<qqq?I")


def folder_of(film: Path) -> Path:
    """Where an interrupted run's work on a film lies."""
    return film.with_name(film.name + SUFFIX)


def is_begun(film: Path) -> bool:
    """Is there work of an interrupted run? (A folder without a plan is one that was being thrown away.)"""
    return (folder_of(film) / PLAN).is_file()


class WorkFolder:
    """The folder FILM.partial: the plan and the complete segments of the film, `done` pictures in all."""

    def __init__(self, film: Path):
        self.folder = folder_of(film)
        self._film = film
        self._claimed: int | None = None
        self.done = 0

    def begin(self, plan: dict[str, Any]) -> None:
        """Start from nothing; what another run left is thrown away. Raises FilmError."""
        self.discard()
        self.folder.mkdir()
        self._claim()
        part = self.part()
        part.write_text(json.dumps(plan, indent=1))
        part.rename(self.folder / PLAN)

    def resume(self, plan: dict[str, Any]) -> None:
        """Take up what another run left, if it was made the same way. Raises FilmError."""
        self._claim()
        try:
            _compare(json.loads((self.folder / PLAN).read_text()), json.loads(json.dumps(plan)))
        except (OSError, ValueError) as error:
            self.close()
            raise FilmError(f"{self.folder} cannot be resumed; --overwrite starts over.") from error
        except FilmError:
            self.close()
            raise
        self.done = sum(count for _, count, _ in self.segments())

    def seal(self, count: int, part: Path | None = None) -> None:
        """The next `count` pictures are safe: in `part` if given, else in files of their own."""
        segment = self.folder / f"{self.done:08d}-{count}.segment"
        segment.touch() if part is None else part.rename(segment)
        self.done += count

    def segments(self) -> list[tuple[int, int, Path]]:
        """(first picture, count, file) of the complete segments, in order and without a gap."""
        found = sorted(
            (int(match[1]), int(match[2]), file)
            for file in self.folder.iterdir()
            if (match := re.fullmatch(r"(\d{8})-(\d+)\.segment", file.name))
        )
        return list(_unbroken(found))

    def part(self) -> Path:
        """Where the segment in work is written."""
        return self.folder / "segment.part"

    def close(self) -> None:
        if self._claimed is not None:
            os.close(self._claimed)
            self._claimed = None

    def discard(self) -> None:
        """All is done, or not wanted any more. Raises FilmError."""
        if self.folder.exists():
            self._claim()
            (self.folder / PLAN).unlink(missing_ok=True)  # first: who is killed in between has nothing to resume
            shutil.rmtree(self.folder)
        self.close()
        self.done = 0

    def _claim(self) -> None:
        """Two runs at once would mix their pictures. Raises FilmError."""
        if sys.platform == "win32" or self._claimed is not None:
            return
        self._claimed = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise FilmError(f"Another run is painting {self._film} at this moment.") from error


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    for name in now.keys() | before.keys():
        if now.get(name) != before.get(name):
            values = f"was {before.get(name)} and is {now.get(name)} now"
            change = values if len(values) < 100 else "is not what it was"
            raise FilmError(f"--resume: {name} {change}; give the same settings, or --overwrite to start over.")


def _unbroken(segments: list[tuple[int, int, Path]]) -> Iterator[tuple[int, int, Path]]:
    due = 0
    for first, count, file in segments:
        if first != due:
            return
        due = first + count
        yield first, count, file


class PacketFile:
    """A file being written."""

    def __init__(self, path: Path):
        self._file = path.open("wb")
        self.close = self._file.close

    def write(self, packet: av.Packet, duration: int) -> None:
        data = bytes(packet)
        self._file.write(_HEADER.pack(packet.pts, packet.dts, duration, packet.is_keyframe, len(data)) + data)


def read_packets(path: Path, time_base: Fraction) -> Iterator[av.Packet]:
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            pts, dts, duration, is_keyframe, size = _HEADER.unpack(header)
            packet = av.Packet(file.read(size))
            packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, time_base
            packet.is_keyframe = is_keyframe
            yield packet


class SegmentEncoder:
    """Encodes pictures into the segments of a work folder."""

    def __init__(self, work: WorkFolder, settings: codecs.VideoSettings):
        self._work, self._settings = work, settings
        self._reformatter = VideoReformatter()
        self._output: PacketFile | None = None
        self._durations: dict[int | None, int] = {}  # of what is in the encoder, by pts
        self._count = 0

    def put(self, picture: np.ndarray, pts: int, duration: int) -> None:
        if self._output is None:
            self._context = codecs.context_of(self._settings)
            self._output = PacketFile(self._work.part())
        try:
            frame = codecs.to_frame(picture, self._settings.encoder, self._reformatter)
            frame.pts, frame.time_base = pts, self._settings.time_base
            self._durations[pts] = duration
            self._write(self._output, self._context.encode(frame))
        except BaseException:
            self._let_go(self._output)  # a segment that misses a picture is none
            raise
        self._count += 1
        if (self._work.done + self._count) % SEGMENT == 0:
            self.close()

    def close(self) -> None:
        """Complete the segment in work, if there is one."""
        if self._output is None:
            return
        output, count = self._output, self._count
        try:
            self._write(output, self._context.encode(None))
            output.close()
            self._work.seal(count, self._work.part())
        finally:
            self._let_go(output)

    def abandon(self) -> None:
        with contextlib.suppress(OSError, av.error.FFmpegError):  # what has happened is told already
            self.close()

    def _let_go(self, output: PacketFile) -> None:
        self._output, self._count = None, 0
        self._durations.clear()
        output.close()

    def _write(self, output: PacketFile, packets: list[av.Packet]) -> None:
        for packet in packets:
            # Encoders lose the durations, and with the last one the film's.
            output.write(packet, self._durations.pop(packet.pts))

    def packets(self) -> Iterator[av.Packet]:
        """All segments' packets; decoding times strictly increase."""
        last = None
        for _, _, file in self._work.segments():
            for packet in read_packets(file, self._settings.time_base):
                assert packet.dts is not None  # as it was written
                # Each segment's encoder begins its decoding times anew, a few frames ahead of its first picture.
                if last is not None and packet.dts <= last:
                    packet.dts = last + 1
                last = packet.dts
                yield packet

    def last_packets(self) -> list[av.Packet]:
        """Those of the last segment."""
        return list(read_packets(self._work.segments()[-1][2], self._settings.time_base))

    def decoded(self) -> Iterator[av.VideoFrame]:
        """The pictures of all segments, of a codec without inter-frame prediction."""
        encoding = codecs.context_of(self._settings)
        encoding.open()
        decoder = av.CodecContext.create(self._settings.encoder.name, "r")
        assert isinstance(decoder, av.VideoCodecContext)
        decoder.extradata, decoder.pix_fmt = encoding.extradata, self._settings.encoder.pixel_format
        decoder.width, decoder.height = self._settings.size
        for packet in self.packets():
            yield from decoder.decode(packet)
        yield from decoder.decode(None)
