"""WHIP (RFC 9725) and WHEP over HTTP: POST an offer, PATCH candidates, DELETE to end."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from stream.streams import Streams
from stream.webrtc.negotiation import offers, sdp
from stream.webrtc.sessions import Session, Sessions

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
SESSIONS = web.AppKey("sessions", Sessions)
STREAMS = web.AppKey("streams", Streams)
NO_SESSION = "There is no such session; it may have ended."
OPTIONS_HEADERS = {"Accept-Post": SDP, "Accept-Patch": FRAGMENT}


def routes() -> list[web.RouteDef]:
    table = []
    for kind in ("whip", "whep"):
        endpoint = Endpoint(kind)
        table += [
            web.post(f"/{kind}/{{stream}}", endpoint.open),
            web.get(f"/{kind}/{{stream}}", endpoint.probe),
            web.options(f"/{kind}/{{stream}}", endpoint.options),
            web.patch(f"/{kind}/{{stream}}/{{session}}", endpoint.trickle),
            web.delete(f"/{kind}/{{stream}}/{{session}}", endpoint.end),
            web.get(f"/{kind}/{{stream}}/{{session}}", endpoint.look),
            web.options(f"/{kind}/{{stream}}/{{session}}", endpoint.options),
        ]
    return table


class Endpoint:
    """The two protocols differ only in which way the video goes."""

    def __init__(self, kind: str):
        self._kind = kind

    async def open(self, request: web.Request) -> web.Response:
        sessions, streams, name = request.app[SESSIONS], request.app[STREAMS], request.match_info["stream"]
        streams.find(name)  # refuses a bad name
        _expect_type(request, SDP)
        publishes = self._kind == "whip"
        directions, verb = (offers.SENDING, "send") if publishes else (offers.RECEIVING, "receive")
        offer = offers.checked_offer(await _text(request), directions, verb)
        # Only now: a new name may push another out, and a request that is refused anyway must not.
        stream = streams.get(name)
        with stream.kept():
            session, answer = await (sessions.publish if publishes else sessions.view)(stream, offer)
        # Without scheme and host, so that it is right behind a proxy too. Who gave the token in the address knows no
        # other way, and will ask for the Location as it stands.
        token = request.query.get("token")
        query = "" if token is None else f"?token={quote(token, safe='')}"
        location = f"/{self._kind}/{name}/{session.id}{query}"
        return web.Response(
            status=201, text=answer, content_type=SDP, headers={"Location": location, "ETag": session.etag}
        )

    async def probe(self, request: web.Request) -> web.Response:
        request.app[STREAMS].find(request.match_info["stream"])
        return web.Response(status=204, headers=OPTIONS_HEADERS)

    async def options(self, request: web.Request) -> web.Response:
        return web.Response(status=204, headers=OPTIONS_HEADERS)

    async def look(self, request: web.Request) -> web.Response:
        session = self._session(request)
        return web.json_response({"state": session.peer.connectionState}, headers={"ETag": session.etag})

    async def trickle(self, request: web.Request) -> web.Response:
        session = self._session(request)
        _expect_type(request, FRAGMENT)
        fragment = sdp.parse_fragment(await _text(request))
        if fragment.ufrag is not None and fragment.ufrag != session.offer_ufrag:
            raise web.HTTPUnprocessableEntity(text="ICE restarts are not supported; open a new session.")
        # Some clients send no If-Match, and one an ETag in its place: only a wrong one is refused.
        if request.headers.get("If-Match", session.etag) not in (session.etag, "*"):
            raise web.HTTPPreconditionFailed(text="If-Match names another ICE session.")
        request.app[SESSIONS].add_candidates(session, fragment.candidates)
        return web.Response(status=204, headers={"ETag": session.etag})

    async def end(self, request: web.Request) -> web.Response:
        if not await request.app[SESSIONS].delete(
            self._kind, request.match_info["stream"], request.match_info["session"]
        ):
            raise web.HTTPNotFound(text=NO_SESSION)
        return web.Response(status=200)

    def _session(self, request: web.Request) -> Session:
        session = request.app[SESSIONS].find(self._kind, request.match_info["stream"], request.match_info["session"])
        if session is None:
            raise web.HTTPNotFound(text=NO_SESSION)
        return session


def _expect_type(request: web.Request, content_type: str) -> None:
    if request.content_type != content_type:
        raise web.HTTPUnsupportedMediaType(text=f"The body must be {content_type}, not {request.content_type}.")


async def _text(request: web.Request) -> str:
    try:
        return (await request.read()).decode()
    except UnicodeDecodeError as error:
        raise sdp.BadSdp("The body is not UTF-8 text.") from error
