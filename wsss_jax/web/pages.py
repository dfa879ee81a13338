"""What all pages have in common: templates, static files, the application and its errors."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from wsss_jax.report.pages import TEMPLATES as REPORT_TEMPLATES
from wsss_jax.web import security

_ROOM = Path(__file__).parent
STATIC = _ROOM / "static"
TEXTS = _ROOM / "texts.json"
LOOKS = {"page.css": REPORT_TEMPLATES / "page.css"}  # of every page: name -> file
KEYS = "1234567890qwertyuiopdfghjklzxcvbnm"  # of the classes; a and s mean something else
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_ROOM / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "decimal": lambda value, digits: _format(value, f".{digits}f"),
    "percent": lambda value: _format(value, ".2%"),
}


def _format(value: float | None, style: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, style)


class StaticFiles:
    """Sends the files that pages are made with; they are read once."""

    def __init__(self, files: Mapping[str, Path]):
        """Reads the files: name in the address -> file."""
        self._files = {name: (path.read_bytes(), path.suffix) for name, path in files.items()}

    def list_routes(self) -> list[Route]:
        return [Route("/static/{name}", self.send)]

    async def send(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            raise HTTPException(404)
        content, suffix = self._files[name]
        headers = {"cache-control": "no-cache"}
        return Response(content, media_type=_MEDIA_TYPES[suffix], headers=headers)


def make_app(routes: Sequence[Route], hosts: Collection[str]) -> Callable[..., Any]:
    """Makes the application that answers these routes, behind its guard; see `security.Guard`."""
    app = Starlette(routes=routes, exception_handlers={HTTPException: _show_problem})
    return security.Guard(app, hosts)


def _show_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    return PlainTextResponse(problem.detail, problem.status_code)


def parse_number(text: str) -> int:
    """Reads a number of an address.

    Raises:
      HTTPException: it is none (404).
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise HTTPException(404, "There is no such thing.")
    return int(text)


def now() -> int:
    """Returns the time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
