"""Everything we use of aiohttp 3.14 that it does not promise to keep.

Private: what is overridden here. Public but undocumented: what connections.Connection overrides of web.RequestHandler
(finish_response is called with every answer, handle_error with every error of the parser and of a handler,
log_exception where a body is read to its end), and web.Server.request_handler, which listening.py replaces.

At an upgrade: run tests/stream/http, and read again what "Recheck" names and the methods above.
"""

from __future__ import annotations

import asyncio
import io
import os
from typing import IO, Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_PIECE_BYTES = 2**16  # so much of a file may wait in memory for a client that does not read


class OpenFileResponse(web.FileResponse):
    """aiohttp's, but that a file that is open can still change the request, and for how the bytes are sent.

    Recheck: web.FileResponse.prepare calls _prepare_open_file, where ranges are judged, and that _sendfile, which sends
    headers and body.
    """

    def judged(self, request: web.BaseRequest, st: os.stat_result) -> web.BaseRequest:
        """The request as it is to be answered. st: of the open file."""
        return request

    async def _prepare_open_file(
        self, request: web.BaseRequest, fobj: io.BufferedReader, st: os.stat_result, file_encoding: str | None
    ) -> AbstractStreamWriter | None:
        return await super()._prepare_open_file(self.judged(request, st), fobj, st, file_encoding)

    async def _sendfile(self, request: web.BaseRequest, fobj: IO[Any], offset: int, count: int) -> AbstractStreamWriter:
        """Through the transport, as every other answer goes: asyncio's sendfile waits for ever on a connection that is
        cut, with the file open, and takes a client that leaves for a mistake."""
        writer = await web.StreamResponse.prepare(self, request)
        assert writer is not None  # as aiohttp's own asserts
        fobj.seek(offset)
        while count > 0 and (piece := fobj.read(min(count, _PIECE_BYTES))):  # as sendfile would, in the loop
            await writer.write(piece)
            count -= len(piece)
            if count:
                await asyncio.sleep(0)  # a client that is as fast as we are would never make that wait
        return writer
