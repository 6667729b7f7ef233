"""A picture that knows how it was made: a PNG with its settings inside, written and read.

They are one iTXt chunk (PNG specification, 11.3.3.4) with the keyword `lcmirror`, uncompressed: a JSON object in UTF-8.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import cv2
import numpy as np

from pipeline.settings import Controls

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"lcmirror"
# After the keyword's NUL: not compressed, method 0, no language, no translated keyword.
_HEAD = KEYWORD + b"\0" + b"\0\0" + b"\0" + b"\0"
_IEND = b"\0\0\0\0IEND"
LAYOUT = 1  # of the settings; a change that old readers would get wrong raises it


class NoSettings(ValueError):
    """These bytes are no snapshot of LCMirror."""


def settings_of(rgb: np.ndarray, controls: Controls, stream: str, model: str, device: str) -> dict[str, Any]:
    """What a snapshot says of itself. rgb: uint8 [height, width, 3]; controls: those that made it."""
    height, width = rgb.shape[:2]
    return {
        "version": LAYOUT,
        "model": model,
        "device": device,
        "size": f"{width}x{height}",
        "controls": controls.model_dump(),
        "stream": stream,
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write(rgb: np.ndarray, settings: dict[str, Any]) -> bytes:
    """A PNG. rgb: uint8 [height, width, 3]."""
    png = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
    end = png.rindex(_IEND)
    return png[:end] + _chunk(b"iTXt", _HEAD + json.dumps(settings, ensure_ascii=False).encode()) + png[end:]


def read(png: bytes) -> dict[str, Any]:
    """The settings in a snapshot. Raises NoSettings."""
    for kind, body in _chunks(png):
        if kind == b"iTXt" and body.startswith(_HEAD):
            try:
                settings = json.loads(body[len(_HEAD) :])
            except (ValueError, RecursionError) as error:
                raise NoSettings("The settings in this PNG are damaged.") from error
            if not isinstance(settings, dict):
                raise NoSettings("The settings in this PNG are damaged.")
            return settings
    raise NoSettings("This PNG holds no settings of LCMirror.")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of every whole and undamaged chunk up to the first that is not."""
    if not png.startswith(SIGNATURE):
        raise NoSettings("This is no PNG.")
    at = len(SIGNATURE)
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, body, end = png[at + 4 : at + 8], png[at + 8 : at + 8 + length], at + 12 + length
        if end > len(png) or struct.unpack_from(">I", png, end - 4)[0] != zlib.crc32(kind + body):
            return
        yield kind, body
        at = end
