"""A file as an answer: ranges and conditions as RFC 9110 has them, where aiohttp does otherwise."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import parse_http_date

from stream.descriptors import OutOfDescriptors, none_left

from .aiohttp_compat import OpenFileResponse

_ONE_RANGE = re.compile(r"bytes=(\d{0,40})-(\d{0,40})", re.ASCII | re.IGNORECASE)
_LAST_NONE = re.compile(r"bytes=-0+", re.IGNORECASE)


async def file(path: Path, headers: Mapping[str, str] | None = None) -> File:
    """The answer to a request for a file. Raises OutOfDescriptors, where aiohttp would say that there is no such file;
    what else may be wrong with it aiohttp says well."""
    try:
        (await asyncio.to_thread(open, path, "rb")).close()
    except OSError as error:
        if none_left(error):
            raise OutOfDescriptors from error
    return File(path, headers=headers)


class File(OpenFileResponse):
    """aiohttp's, but for some requests that RFC 9110 has a server answer otherwise."""

    def __init__(self, path: Path, headers: Mapping[str, str] | None = None):
        super().__init__(path, headers=headers)
        self._if_range: str | None = None

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        self._if_range = request.headers.get("If-Range")
        ignored = [name for name, value in request.headers.items() if not counts(name.lower(), value, request.method)]
        return await super().prepare(_changed(request, dict.fromkeys(ignored)) if ignored else request)

    def judged(self, request: web.BaseRequest, st: os.stat_result) -> web.BaseRequest:
        self.etag, self.last_modified = f"{st.st_mtime_ns:x}-{st.st_size:x}", st.st_mtime  # as aiohttp will
        if self._if_range not in (None, self.headers["ETag"], self.headers["Last-Modified"]):  # section 13.1.5
            return _changed(request, {"Range": None})
        if _LAST_NONE.fullmatch(request.headers.get("Range", "").strip()):  # section 14.1.2: unsatisfiable
            return _changed(request, {"Range": f"bytes={st.st_size}-"})
        return request


def counts(name: str, value: str, method: str) -> bool:
    """Whether that header of a request for a file is to be heeded; `name` in lower case.

    aiohttp refuses or stumbles over what RFC 9110 has a server ignore: of ranges (section 14.2) other units than bytes,
    what is no range, and any of another method than GET; what is no date (section 13.1.3). Several ranges may be
    ignored, and are. If-Range is judged here, and kept from aiohttp, which knows only dates.
    """
    if not value.isascii() or name == "if-range":
        return False
    if name == "range":
        return method == "GET" and is_one_range(value)
    return name not in ("if-modified-since", "if-unmodified-since") or is_date(value)


def is_date(text: str) -> bool:
    try:
        return parse_http_date(text) is not None
    except OverflowError:  # a year that no machine number holds
        return False


def is_one_range(text: str) -> bool:
    """One valid range of bytes (RFC 9110, section 14.1.2); it may still lie behind the end."""
    match = _ONE_RANGE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return False
    first, last = match.groups()
    return not (first and last) or int(first) <= int(last)


def _changed(request: web.BaseRequest, headers: Mapping[str, str | None]) -> web.BaseRequest:
    """The request with those headers instead of its own of that name; None: without."""
    names = {name.lower() for name in headers}
    kept = [(name, value) for name, value in request.headers.items() if name.lower() not in names]
    return request.clone(headers=[*kept, *((name, value) for name, value in headers.items() if value is not None)])
