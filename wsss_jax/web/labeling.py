"""The pages on which people label patches."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from wsss_jax.errors import InputError
from wsss_jax.labels.desk import Desk, Progress, parse_event
from wsss_jax.labels.patches import PatchFile
from wsss_jax.labels.store import ANNOTATOR, CHIEF, Person
from wsss_jax.report.pages import TEMPLATES as REPORT_TEMPLATES
from wsss_jax.web import security
from wsss_jax.web.surroundings import FIELDS, Surroundings

_ROOM = Path(__file__).parent
_STATIC = {
    "page.css": (REPORT_TEMPLATES / "page.css", "text/css"),
    "label.css": (_ROOM / "static" / "label.css", "text/css"),
    "chief.css": (_ROOM / "static" / "chief.css", "text/css"),
    "label.js": (_ROOM / "static" / "label.js", "text/javascript"),
}
KEYS = "1234567890qwertyuiopdfghjklzxcvbnm"  # of the classes; a and s mean something else
_AHEAD = 25  # patches that a page is told at once
_YEAR = 365 * 24 * 3600
_PATCH_CACHE = "private, max-age=3600"

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


class Settings(NamedTuple):
    """How the pages behave.

    Attributes:
      hosts: names by which browsers may know the server; see `security.list_hosts`.
      cookie: its name, another one for each port: browsers do not tell ports apart.
      idle: seconds without any movement after which nobody is taken to be looking.
    """

    hosts: frozenset[str]
    cookie: str
    idle: float


class Labeling:
    """Answers requests about one labeling."""

    def __init__(
        self,
        desk: Desk,
        patches: Mapping[str, PatchFile],
        surroundings: Surroundings,
        settings: Settings,
    ):
        self.desk, self.patches, self.settings = desk, patches, settings
        self._surroundings = surroundings
        self._texts = json.loads((_ROOM / "texts.json").read_text(encoding="utf-8"))
        self._static = {name: (path.read_bytes(), t) for name, (path, t) in _STATIC.items()}

    def list_routes(self) -> list[Route]:
        return [
            Route("/", self.show_page),
            Route("/enter/{token}", self.enter),
            Route("/static/{name}", self.send_static),
            Route("/next", self.list_next),
            Route("/event", self.take_event, methods=["POST"]),
            Route("/patch/{patch:int}", self.send_patch),
            Route("/surroundings/{patch:int}/{field:int}", self.send_surroundings),
        ]

    def identify(self, request: Request, *roles: str) -> Person:
        """Says who sends a request.

        Raises:
          HTTPException: nobody who is known (401), or somebody in another role (403).
        """
        token = request.cookies.get(self.settings.cookie, "")
        person = self._find(token)
        if person is None:
            raise HTTPException(401, "Open the address that was given to you.")
        if person.role not in roles:
            raise HTTPException(403, f"This page is not for the {person.role}.")
        return person

    def _find(self, token: str) -> Person | None:
        return security.find_owner(
            token,
            [
                (person.token, person)
                for person in self.desk.people.values()
                if person.role == CHIEF or person in self.desk.annotators
            ],
        )

    async def enter(self, request: Request) -> Response:
        """Exchanges the token in the address for a cookie, once."""
        token = request.path_params["token"]
        if self._find(token) is None:
            raise HTTPException(401, "This address opens nothing. Ask for your own.")
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self.settings.cookie, token, max_age=_YEAR, httponly=True, samesite="strict", path="/"
        )
        return response

    async def show_page(self, request: Request) -> Response:
        person = self.identify(request, ANNOTATOR, CHIEF)
        if person.role == CHIEF:
            return RedirectResponse("/chief", 303)
        place = [each.place for each in self.patches.values()]
        page = TEMPLATES.get_template("label.html").render(
            texts=self._texts,
            person=person.name,
            classes=self.desk.classes,
            keys=KEYS,
            surroundings=FIELDS if any(place) else (),
            state={
                "texts": self._texts,
                "keys": KEYS,
                "classes": self.desk.classes,
                "idle": round(1000 * self.settings.idle),
                "start": self._describe_next(person, 0),
            },
        )
        return HTMLResponse(page)

    async def send_static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        content, media_type = self._static[name]
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    async def list_next(self, request: Request) -> Response:
        person = self.identify(request, ANNOTATOR)
        after = request.query_params.get("after", "0")
        if not (after.isdecimal() and len(after) < 16):
            raise HTTPException(400, "after is the number of a patch")
        return JSONResponse(self._describe_next(person, int(after)))

    def _describe_next(self, person: Person, after: int) -> dict[str, Any]:
        patches = self.desk.list_next(person.number, _AHEAD, after)
        return {
            "patches": [{"patch": p, "draft": self.desk.draft(person.number, p)} for p in patches],
            "progress": self.desk.measure_progress(person.number)._asdict(),
        }

    async def take_event(self, request: Request) -> Response:
        person = self.identify(request, ANNOTATOR)
        try:
            key, event = parse_event(await security.read_body(request), now())
            # In a thread: the disk takes a while, and other people's pictures need not wait.
            undone = await to_thread.run_sync(self.desk.take, person, key, event)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except security.TooLarge as error:
            raise HTTPException(413, "too large") from error
        patch = undone.patch if undone else event.patch
        progress: Progress = self.desk.measure_progress(person.number)
        return JSONResponse(
            {
                "draft": self.desk.draft(person.number, patch) if patch else {},
                "undone": undone._asdict() if undone else None,
                "progress": progress._asdict(),
            }
        )

    def _get_patch(self, request: Request) -> PatchFile:
        person = self.identify(request, ANNOTATOR, CHIEF)
        patch = request.path_params["patch"]
        if not self.desk.is_theirs(person, patch):
            raise HTTPException(404, "There is no such patch.")
        return self.patches[self.desk.names[patch]]

    async def send_patch(self, request: Request) -> Response:
        path = self._get_patch(request).path
        try:
            content = await to_thread.run_sync(path.read_bytes)
        except OSError as error:
            raise HTTPException(404, "The picture is not there any more.") from error
        return _send_picture(content, "image/png")

    async def send_surroundings(self, request: Request) -> Response:
        patch, field = self._get_patch(request), request.path_params["field"]
        if patch.place is None or field not in FIELDS:
            raise HTTPException(404, "There are no surroundings.")
        try:
            content = await to_thread.run_sync(self._surroundings.draw, patch.place, field)
        except (InputError, OSError) as error:
            raise HTTPException(404, str(error)) from error
        return _send_picture(content, "image/jpeg")


def _format(value: float | None, style: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, style)


def make_app(routes: Sequence[Route], settings: Settings) -> Callable[..., Any]:
    """Makes the application that answers these routes, behind its guard."""
    app = Starlette(routes=routes, exception_handlers={HTTPException: _show_problem})
    return security.Guard(app, settings.hosts)


def _show_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    return PlainTextResponse(problem.detail, problem.status_code)


def _send_picture(content: bytes, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"cache-control": _PATCH_CACHE})


def now() -> int:
    """Returns the time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
