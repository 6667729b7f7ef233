"""Access to the server: Host, Origin and token checks, CORS for named origins, and safe headers."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

import idna
from aiohttp import web

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
USUAL_PORTS = {"http": 80, "https": 443}
METHODS = "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"
OPEN_PREFIXES = ("/static/", "/view/")  # pages ask for the token; they need to be seen to do so
_PLAIN_HOST = re.compile(r"[\w.\-\[\]:]+", re.ASCII)  # anything else could write into the policy it is put into
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(:[0-9]*)?")  # RFC 3986, section 3.2, but for whose it is
_LABELS = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*\.?", re.ASCII)
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?")  # for browsers it is an IPv4 address then
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
    use the API from their pages, "*" for all. Raises ValueError, in one sentence, for a token that would guard nothing
    or that nobody could send, and for what is no origin.
    """

    host: str = "127.0.0.1"
    token: str | None = None
    allow_origins: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)
        object.__setattr__(self, "allow_origins", frozenset(map(serialized_origin, self.allow_origins)))

    def refusal(self, request: web.Request) -> Refusal | None:
        """None when the request may pass."""
        host = host_header(request)
        if not self.knows_host(host):
            return Refusal(
                403, "This server is not known by that host name; open it by the address it was started with."
            )
        origin = request.headers.get("Origin")
        if origin is not None and not self.knows_origin(origin, host):
            return Refusal(
                403, "Requests from that origin are not allowed; start the server with --allow-origin to permit it."
            )
        # A preflight carries no credentials and gets nothing but headers.
        if self.token is not None and not is_open(request.path) and request.method != "OPTIONS":
            given = given_token(request)
            if given is None or not hmac.compare_digest(given.encode(errors="surrogateescape"), self.token.encode()):
                return Refusal(401, "A valid token is needed: send it as Authorization: Bearer or as ?token=.")
        return None

    def knows_host(self, host: str) -> bool:
        """Against DNS rebinding: a foreign name that resolves to us is refused. Beyond loopback the names by which we
        are reached cannot be known; there the token is the guard, which a rebound page does not have."""
        if self.token is not None and self.host not in LOOPBACK_HOSTS:
            return True
        name = host_name(host)
        return name in LOOPBACK_HOSTS or (name is not None and name == self.host.lower())

    def knows_origin(self, origin: str, host: str) -> bool:
        if "*" in self.allow_origins or origin.lower() in self.allow_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""

    def cors_headers(self, origin: str | None, host: str) -> dict[str, str]:
        """What a page of another, permitted origin needs; nothing for our own pages and for programs."""
        if origin is None or not self.knows_origin(origin, host):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
            "Access-Control-Expose-Headers": "Location, ETag, Link",
            "Access-Control-Max-Age": "86400",
            "Vary": "Origin",
        }


def check_token(token: str) -> None:
    """Raises ValueError for a token that is blank (an unset variable), or that no Authorization header can carry."""
    if not token.strip():
        raise ValueError("--token is empty and would let everybody in: is the variable set that should hold it?")
    if token != token.strip() or not token.isprintable():
        raise ValueError("--token begins or ends with a space or holds a control character: no client could send it.")


def serialized_origin(text: str) -> str:
    """As browsers write it in the Origin header (RFC 6454, section 6.2): lower case, no slash, no usual port.

    "*" and "null" stay. Raises ValueError for what no browser would ever send.
    """
    if text in ("*", "null"):
        return text
    try:
        if any(ord(character) < 0x20 for character in text):  # urlsplit leaves some out
            raise ValueError
        parts = urlsplit(text)
        if not (parts.scheme and text[len(parts.scheme) :].startswith("://") and parts.netloc):
            raise ValueError
        authority = _AUTHORITY.fullmatch(parts.netloc.rpartition("@")[2])
        host, port = serialized_host(authority[1] if authority else ""), parts.port
    except ValueError as error:
        reason = str(error) if isinstance(error, BadHost) else "give scheme and host, as in https://example.org"
        raise ValueError(f"--allow-origin {text!r} is no origin: {reason}.") from error
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"--allow-origin {text!r} is more than an origin: give scheme and host alone, as in https://example.org."
        )
    shown_port = "" if port in (None, USUAL_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"


class BadHost(ValueError):
    """The text says what to give instead."""


def serialized_host(host: str) -> str:
    """As browsers write it (WHATWG URL, sections 3.3 and 3.5): names by IDNA 2008 with UTS 46, IPv6 compressed and in
    brackets. Raises ValueError for what is no host, BadHost for other forms of an IPv4 address than four numbers."""
    if host.startswith("["):
        address = ipaddress.IPv6Address(host[1:-1])
        if address.scope_id is not None:
            raise ValueError("Browsers send no zone.")
        mapped = int(address) & 0xFFFFFFFF  # some Pythons show its end as IPv4
        return f"[::ffff:{mapped >> 16:x}:{mapped & 0xFFFF:x}]" if address.ipv4_mapped else f"[{address}]"
    if not host.isascii():
        labels = idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")
        host = ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
    host = host.lower()
    if not _LABELS.fullmatch(host):
        raise ValueError("There is no such name.")
    if _ENDS_IN_NUMBER.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise BadHost("write an IPv4 address as four decimal numbers, as in http://127.0.0.1") from error
    return host


def host_header(request: web.BaseRequest) -> str:
    """Empty where there is none; aiohttp would ask the resolver for this machine's name, and wait for it."""
    return request.headers.get("Host", "")


def is_open(path: str) -> bool:
    """Reachable without the token: what shows a page, and nothing of what it works with."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


def given_token(request: web.Request) -> str | None:
    """From the Authorization header, or from ?token= where headers cannot be set (WebSocket, OBS browser source)."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else request.query.get("token")


def host_name(header: str) -> str | None:
    """The name in a Host header, without port and brackets; None when it is malformed."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def security_headers(host: str) -> dict[str, str]:
    """Fit for plain ES modules from our own origin. WebSockets are named for browsers whose 'self' excludes them.

    'unsafe-eval' is for automation: Playwright's wait_for_function evaluates its expression in the page. Our scripts
    evaluate no strings, and inline or foreign scripts stay forbidden.
    """
    sockets = f" ws://{host} wss://{host}" if _PLAIN_HOST.fullmatch(host) else ""
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
