"""How are encoded pictures put aside? As packets with their exact times, which a container would round or drop.

Each packet: pts, dts, duration (units of the film's time_base), whether it is a keyframe, its size, its data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

_HEADER = struct.Struct("<qqq?I")


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
