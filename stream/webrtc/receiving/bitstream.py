"""VP8 and H264 bitstreams, read without decoding: whether a frame is a keyframe, and how large it is."""

from __future__ import annotations

_VP8_KEYFRAME = b"\x9d\x01\x2a"  # in front of the size
_START_CODE = b"\x00\x00\x01"  # of a NAL unit (H.264, B.1)
_IDR, _SPS = 5, 7  # NAL unit types (table 7-1)
_MAX_SPS = 4096  # bytes; what comes before the size has less
# As the standard bounds them; who sends more is not to be read, which would take long, nor decoded.
_MAX_SETS = 32  # sequence parameter sets (7.4.2.1.1), of which few streams have more than one
_MAX_CYCLE = 255  # num_ref_frames_in_pic_order_cnt_cycle (7.4.2.1.1)
_MAX_ZEROS = 32  # in front of an Exp-Golomb number (9.1), which has 32 bits
_CHROMA_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 138, 144, 244})  # as FFmpeg reads them


class Malformed(ValueError):
    """A frame that breaks the codec's bounds."""


def is_keyframe(codec: str, data: bytes) -> bool:
    """Can it be decoded by itself? Of VP8 (RFC 6386, 9.1) and H264; true for sound."""
    if codec.upper() == "VP8":
        return bool(data) and not data[0] & 1
    if codec.upper() == "H264":
        return any(unit[0] & 0x1F == _IDR for unit in _nal_units(data))
    return True


def coded_size(codec: str, data: bytes) -> tuple[int, int] | None:
    """(width, height) in pixels of this frame and those that follow, before cropping; None where it says nothing of it.

    VP8 says it in its keyframes (RFC 6386, 9.1), H264 in its sequence parameter sets (7.3.2.1.1): of several the
    largest is told. Raises Malformed.
    """
    if codec.upper() == "VP8" and is_keyframe(codec, data) and data[3:6] == _VP8_KEYFRAME and len(data) >= 10:
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    if codec.upper() == "H264":
        sets = {unit[1:_MAX_SPS] for unit in _nal_units(data) if unit[0] & 0x1F == _SPS}
        if len(sets) > _MAX_SETS:
            raise Malformed(f"{len(sets)} sequence parameter sets in one frame")
        sizes = [size for sps in sets if (size := _size_of_sps(sps)) is not None]
        return max(sizes, key=lambda size: size[0] * size[1], default=None)
    return None


def macroblocks(width: int, height: int) -> int:
    """Of 16x16 pixels, begun ones too: what both codecs measure frames in."""
    return -(-width // 16) * -(-height // 16)


def _nal_units(data: bytes) -> list[bytes]:
    return [unit for unit in data.split(_START_CODE)[1:] if unit]


class _Bits:
    """Reads a bitstream from its first bit on. Raises EOFError at its end."""

    def __init__(self, data: bytes):
        self._bits = f"{int.from_bytes(data):0{8 * len(data)}b}" if data else ""
        self._at = 0

    def u(self, count: int = 1) -> int:
        begin, self._at = self._at, self._at + count
        if self._at > len(self._bits):
            raise EOFError
        return int(self._bits[begin : self._at] or "0", 2)

    def ue(self) -> int:
        """An Exp-Golomb number (H.264, 9.1). Raises Malformed where it is too large."""
        one = self._bits.find("1", self._at)
        if one < 0:
            raise EOFError
        if one - self._at > _MAX_ZEROS:
            raise Malformed("a number of more than 32 bits")
        zeros, self._at = one - self._at, one
        return self.u(zeros + 1) - 1

    def se(self) -> int:
        number = self.ue()
        return (number + 1) // 2 if number % 2 else -(number // 2)


def _size_of_sps(sps: bytes) -> tuple[int, int] | None:
    """Of a sequence parameter set without its header byte (H.264, 7.3.2.1.1); None where it ends too early."""
    bits = _Bits(sps.replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        profile = bits.u(8)
        bits.u(16)  # constraints, level
        bits.ue()  # its number
        if profile in _CHROMA_PROFILES:
            _skip_chroma(bits)
        bits.ue()  # log2_max_frame_num_minus4
        _skip_order_count(bits)
        bits.ue()  # max_num_ref_frames
        bits.u()  # gaps_in_frame_num_value_allowed_flag
        width, height = (bits.ue() + 1) * 16, (bits.ue() + 1) * 16
        frame_mbs_only = bits.u()
    except EOFError:
        return None
    return width, height * (2 - frame_mbs_only)


def _skip_chroma(bits: _Bits) -> None:
    is_444 = bits.ue() == 3
    if is_444:
        bits.u()  # separate_colour_plane_flag
    bits.ue(), bits.ue(), bits.u()  # bit depths, qpprime_y_zero_transform_bypass_flag
    if bits.u():
        for number in range(12 if is_444 else 8):
            if bits.u():
                _skip_scaling_list(bits, 16 if number < 6 else 64)


def _skip_scaling_list(bits: _Bits, length: int) -> None:
    last = following = 8
    for _ in range(length):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _skip_order_count(bits: _Bits) -> None:
    kind = bits.ue()
    if kind == 0:
        bits.ue()
    elif kind == 1:
        bits.u(), bits.ue(), bits.ue()
        cycle = bits.ue()
        if cycle > _MAX_CYCLE:
            raise Malformed(f"an order count cycle of {cycle} frames")
        for _ in range(cycle):
            bits.ue()
