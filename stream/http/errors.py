"""The one shape of every error, {"error": one sentence}: handlers raise, and only here an answer is made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiohttp import web

from stream.descriptors import OutOfDescriptors, none_left
from stream.engine.batches import CannotImagine
from stream.engine.runner import EngineFailed
from stream.recording.recordings import (
    AlreadyRecording,
    CannotRecord,
    NoRecording,
    StillRecording,
    TooManyRecordings,
)
from stream.streams import BadStreamName, NoFreeStream
from stream.webrtc.negotiation.offers import NoCommonCodec
from stream.webrtc.negotiation.sdp import BadSdp
from stream.webrtc.sessions import TooManySessions

from .api import BadControl, TooManyListeners

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
KEPT_HEADERS = ("Allow", "Connection", "Upgrade")  # of aiohttp's own answers
MISTAKE = "The server made a mistake; its log says more."

STATUS_OF: Mapping[type[Exception], int] = {
    BadStreamName: 400,
    BadSdp: 400,
    NoCommonCodec: 406,
    NoFreeStream: 503,
    OutOfDescriptors: 503,
    TooManySessions: 503,
    TooManyListeners: 503,
    EngineFailed: 503,
    NoRecording: 404,
    CannotImagine: 409,
    AlreadyRecording: 409,
    StillRecording: 409,
    CannotRecord: 500,
    TooManyRecordings: 503,
}


def error_response(
    status: int, sentence: str, headers: Mapping[str, str] | None = None, field: str | None = None
) -> web.Response:
    """Overload (503) says when to come back. field: the control that is at fault."""
    named = {} if field is None else {"field": field}
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return web.json_response({"error": sentence, **named}, status=status, headers={**retry, **(headers or {})})


def answer_to(error: Exception, request: web.Request) -> web.Response:
    """Raises it again where it is no error, or nobody reads an answer any more."""
    if isinstance(error, web.HTTPException):
        return _answer_of_aiohttp(error, request)
    if isinstance(error, BadControl):
        return error_response(422, str(error), field=error.field)
    if type(error) in STATUS_OF:
        return error_response(STATUS_OF[type(error)], str(error))
    if isinstance(error, web.RequestPayloadError):
        return error_response(400, "The body cannot be read: its framing or its compression is malformed.")
    if isinstance(error, ConnectionResetError):  # the client is gone
        raise error
    if none_left(error):
        return answer_to(OutOfDescriptors(), request)
    log.error("%s %s failed.", request.method, request.path, exc_info=error)
    return error_response(500, MISTAKE)


def _answer_of_aiohttp(error: web.HTTPException, request: web.Request) -> web.Response:
    if error.status < 400:
        raise error
    kept = {name: error.headers[name] for name in KEPT_HEADERS if name in error.headers}
    if error.status == 405 and request.method == "OPTIONS":  # every route may be asked what it allows
        return web.Response(status=204, headers=kept)
    return error_response(error.status, _sentence(error, request), kept)


def _sentence(error: web.HTTPException, request: web.Request) -> str:
    """aiohttp's own errors say only "404: Not Found"; ours carry their sentence."""
    if error.text and not error.text.startswith(f"{error.status}: "):
        return " ".join(error.text.split())
    return {
        404: f"There is nothing at {request.path[:100]}.",
        405: f"{request.method} is not possible at {request.path[:100]}.",
    }.get(error.status, f"{error.reason}.")
