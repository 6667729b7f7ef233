"""A file as an answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from .descriptors import OutOfDescriptors, none_left

_ONE_RANGE = re.compile(r"bytes=(\d{0,40})-(\d{0,40})", re.ASCII | re.IGNORECASE)


async def file(path: Path, headers: Mapping[str, str] | None = None) -> File:
    """The answer to a request for a file. Raises OutOfDescriptors, where aiohttp would say that there is no such file;
    what else may be wrong with it aiohttp says well."""
    try:
        (await asyncio.to_thread(open, path, "rb")).close()
    except OSError as error:
        if none_left(error):
            raise OutOfDescriptors from error
    return File(path, headers=headers)


class File(web.FileResponse):
    """aiohttp's, which refuses with 416 what RFC 9110, section 14.2, has a server ignore: other units than bytes, what
    is no range, any range of another method than GET. Several ranges may be ignored, and are."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        asked = request.headers.get("Range")
        if asked is not None and not (request.method == "GET" and is_one_range(asked)):
            # Whatever else matters to a file is plain ASCII; other bytes could not be copied.
            kept = [(name, value) for name, value in request.headers.items() if value.isascii()]
            request = request.clone(headers=[header for header in kept if header[0].lower() != "range"])
        return await super().prepare(request)


def is_one_range(text: str) -> bool:
    """One valid range of bytes (RFC 9110, section 14.1.2); it may still lie behind the end."""
    match = _ONE_RANGE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return False
    first, last = match.groups()
    return not (first and last) or int(first) <= int(last)
