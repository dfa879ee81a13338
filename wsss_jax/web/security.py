"""What every request must pass, and what every answer says.

A page of labels holds patients' tissue. Other pages in the same browser must not read it (DNS
rebinding, embedding) or answer in its name (cross-site requests), and people in the same network
need a token.
"""

import hmac
import ipaddress
import socket
from collections.abc import Collection, Iterable
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 64 * 1024  # bytes
_HEADERS = {
    # Scripts, styles and pictures come from here alone; nothing inline runs; nobody frames it.
    # The one style by its hash is OpenSeadragon's, which hides an outline on touch screens.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' "
    "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # Not "no-referrer": forms would then be sent from the origin "null".
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """A request's body is over `LARGEST_BODY`."""


class Guard:
    """Refuses requests to another host, and those that pages of other origins send."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]):
        """Wraps an application.

        Args:
          app: the application.
          hosts: names and addresses, without port, by which a browser may know this server.
        """
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = self._find_problem(scope["method"], Headers(scope=scope))
        app = PlainTextResponse(problem, 403) if problem else self._app
        await app(scope, receive, send_guarded)

    def _find_problem(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "")
        if _get_name(f"//{host}") not in self._hosts:
            return "This server is not known under that name."
        if method in ("GET", "HEAD"):
            return ""
        # Browsers name the page that a request to change something comes from.
        origin = headers.get("origin", "").lower()
        if origin not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return "Requests from other pages are refused."
        return ""


def _get_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Tells whether a server bound to `host` is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def list_hosts(host: str, further: Iterable[str] = ()) -> set[str]:
    """Lists the names under which a browser may know a server.

    Args:
      host: address that it is bound to.
      further: other names, such as that of a proxy.
    """
    hosts = {host.lower(), *(name.lower() for name in further), "localhost", "127.0.0.1", "::1"}
    if is_loopback(host):
        return hosts
    names = {socket.gethostname(), socket.getfqdn()}
    try:
        addresses = {str(info[4][0]) for name in names for info in socket.getaddrinfo(name, None)}
    except OSError:  # this machine's name has no address
        addresses = set()
    return hosts | {name.lower() for name in names} | addresses | {find_address(host)}


def find_address(host: str) -> str:
    """Finds the address by which others in the network reach a server.

    Args:
      host: address that it is bound to; if that means all addresses of this machine, it is the one
        from which this machine reaches others, or the machine's name where it reaches none.
    """
    if host not in ("0.0.0.0", "::"):
        return host
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    far = "2001:db8::1" if host == "::" else "192.0.2.1"  # for documentation: nobody has them
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))  # sends nothing
        except OSError:
            return socket.gethostname().lower()
        return str(probe.getsockname()[0])


_T = TypeVar("_T")


def find_owner(token: str, owners: Iterable[tuple[str, _T]]) -> _T | None:
    """Finds whose token it is, in a time that does not tell how much of it is right."""
    found = None
    for other, owner in owners:
        if hmac.compare_digest(token.encode(), other.encode()):
            found = owner
    return found


async def read_body(request: Request) -> bytes:
    """Reads the body of a request.

    Raises:
      TooLarge: it is over `LARGEST_BODY`.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise TooLarge
    return body
