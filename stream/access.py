"""Who may talk to the server: Host, Origin and token checks, CORS for named origins, and safe headers."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
METHODS = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
OPEN_PREFIXES = ("/static/", "/view/")  # pages ask for the token; they need to be seen to do so
_PLAIN_HOST = re.compile(r"[\w.\-\[\]:]+", re.ASCII)  # anything else could write into the policy it is put into
OPEN_PATHS = frozenset({"/", "/healthz", "/favicon.ico"})


@dataclass(frozen=True)
class Refusal:
    """Why a request is turned away: an HTTP status and one sentence."""

    status: int
    reason: str


@dataclass(frozen=True)
class Access:
    """The rules of one server.

    host: the address it is bound to. token: None asks for none. allow_origins: origins ("https://example.org") that may
    use the API from their pages, "*" for all.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    allow_origins: Collection[str] = ()

    def refusal(self, request: web.Request) -> Refusal | None:
        """None when the request may pass."""
        if not self.knows_host(request.host):
            return Refusal(
                403, "This server is not known by that host name; open it by the address it was started with."
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self.knows_origin(origin, request.host):
            return Refusal(
                403, "Requests from that origin are not allowed; start the server with --allow-origin to permit it."
            )
        # A preflight carries no credentials and gets nothing but headers.
        if self.token is not None and not is_open(request.path) and request.method != "OPTIONS":
            given = given_token(request)
            if given is None or not hmac.compare_digest(given.encode(errors="surrogateescape"), self.token.encode()):
                return Refusal(401, "A valid token is needed: send it as Authorization: Bearer or as ?token=.")
        return None

    def knows_host(self, host_header: str) -> bool:
        """Against DNS rebinding: a foreign name that resolves to us is refused. Beyond loopback the names by which we
        are reached cannot be known; there the token is the guard, which a rebound page does not have."""
        if self.token is not None and self.host not in LOOPBACK_HOSTS:
            return True
        name = host_name(host_header)
        return name in LOOPBACK_HOSTS or (name is not None and name == self.host.lower())

    def knows_origin(self, origin: str, host_header: str) -> bool:
        if "*" in self.allow_origins or origin in self.allow_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host_header.lower()

    def cors_headers(self, origin: str | None, host_header: str) -> dict[str, str]:
        """What a page of another, permitted origin needs; nothing for our own pages and for programs."""
        if origin is None or not self.knows_origin(origin, host_header):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
            "Access-Control-Expose-Headers": "Location, ETag, Link",
            "Access-Control-Max-Age": "86400",
            "Vary": "Origin",
        }


def is_open(path: str) -> bool:
    """Reachable without the token: what shows a page, and nothing of what it works with."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def given_token(request: web.Request) -> str | None:
    """From the Authorization header, or from ?token= where headers cannot be set (WebSocket, OBS browser source)."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else request.query.get("token")


def host_name(host_header: str) -> str | None:
    """The name in a Host header, without port and brackets; None when it is malformed."""
    try:
        return urlsplit(f"//{host_header}").hostname
    except ValueError:
        return None


def security_headers(host_header: str) -> dict[str, str]:
    """Fit for plain ES modules from our own origin. WebSockets are named for browsers whose 'self' excludes them.

    'unsafe-eval' is for automation: Playwright's wait_for_function evaluates its expression in the page. Our scripts
    evaluate no strings, and inline or foreign scripts stay forbidden.
    """
    sockets = f" ws://{host_header} wss://{host_header}" if _PLAIN_HOST.fullmatch(host_header) else ""
    return {
        "Content-Security-Policy": (
            "default-src 'self'; script-src 'self' 'unsafe-eval'; style-src 'self'; "
            "img-src 'self' data: blob:; media-src 'self' blob:; "
            f"connect-src 'self'{sockets}; "
            "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
