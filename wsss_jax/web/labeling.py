"""The pages on which people label patches."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from wsss_jax.errors import InputError
from wsss_jax.labels.desk import Desk, parse_event
from wsss_jax.labels.patches import PatchFile
from wsss_jax.labels.replay import Event
from wsss_jax.labels.store import ANNOTATOR, CHIEF, Person
from wsss_jax.web import security
from wsss_jax.web.access import Access
from wsss_jax.web.pages import KEYS, LOOKS, STATIC, TEMPLATES, TEXTS, StaticFiles, now, parse_number
from wsss_jax.web.surroundings import FIELDS, Surroundings

_FILES = LOOKS | {name: STATIC / name for name in ("label.css", "chief.css", "label.js")}
_AHEAD = 25  # patches that a page is told at once
_PATCH_CACHE = "private, max-age=3600"


class Pages(NamedTuple):
    """How the pages behave.

    Attributes:
      hosts: names by which browsers may know the server; see `security.list_hosts`.
      cookie: its name, another one for each port: browsers do not tell ports apart.
      idle: seconds without any movement after which nobody is taken to be looking.
      chief: name of the one who settles and exports.
    """

    hosts: frozenset[str]
    cookie: str
    idle: float
    chief: str


class Labeling:
    """Answers requests about one labeling."""

    def __init__(
        self,
        desk: Desk,
        patches: Mapping[str, PatchFile],
        surroundings: Surroundings,
        pages: Pages,
    ):
        self.desk, self.patches, self._pages = desk, patches, pages
        self._surroundings = surroundings
        self._texts = json.loads(TEXTS.read_text(encoding="utf-8"))
        self._static = StaticFiles(_FILES)
        self._access = Access(pages.cookie, self._list_owners)

    def list_routes(self) -> list[Route]:
        return [
            Route("/", self.show_page),
            *self._access.list_routes(),
            *self._static.list_routes(),
            Route("/next", self.list_next),
            Route("/event", self.take_event, methods=["POST"]),
            Route("/patch/{patch}", self.send_patch),
            Route("/surroundings/{patch}/{field}", self.send_surroundings),
        ]

    def identify(self, request: Request, *roles: str) -> Person:
        """Says who sends a request.

        Raises:
          HTTPException: nobody who is known (401), or somebody in another role (403).
        """
        person = self._access.identify(request)
        if person.role not in roles:
            raise HTTPException(403, f"This page is not for the {person.role}.")
        return person

    def _list_owners(self) -> Iterator[tuple[str, Person]]:
        for person in self.desk.people.values():
            is_chief = person.role == CHIEF and person.name == self._pages.chief
            if is_chief or person in self.desk.annotators:
                yield person.token, person

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
                "person": person.number,
                "idle": round(1000 * self._pages.idle),
                "start": await to_thread.run_sync(self._describe_next, person, 0),
            },
        )
        return HTMLResponse(page)

    async def list_next(self, request: Request) -> Response:
        person = self.identify(request, ANNOTATOR)
        after = parse_number(request.query_params.get("after", "0"))
        _refuse_another(person, parse_number(request.query_params.get("person", "0")))
        # In a thread: a slow disk must not keep others waiting for their pictures.
        return JSONResponse(await to_thread.run_sync(self._describe_next, person, after))

    def _describe_next(self, person: Person, after: int) -> dict[str, Any]:
        patches = self.desk.list_next(person.number, _AHEAD, after)
        return {
            "patches": [self._describe_patch(person, patch) for patch in patches],
            "progress": self.desk.measure_progress(person.number)._asdict(),
        }

    def _describe_patch(self, person: Person, patch: int) -> dict[str, Any]:
        return {
            "patch": patch,
            "picture": self.name_picture(patch),
            "draft": self.desk.draft(person.number, patch),
        }

    def name_picture(self, patch: int) -> str:
        """Returns the address of a patch's picture: another one where the file is another."""
        path = self.patches[self.desk.names[patch]].path
        try:
            status = path.stat()
        except OSError:
            return f"/patch/{patch}"
        text = f"{path.absolute()}\0{status.st_mtime_ns}\0{status.st_size}"
        return f"/patch/{patch}?v={zlib.crc32(os.fsencode(text)):08x}"

    async def take_event(self, request: Request) -> Response:
        person = self.identify(request, ANNOTATOR)
        try:
            number, key, event = parse_event(await security.read_body(request), now())
            _refuse_another(person, number)
            return JSONResponse(await to_thread.run_sync(self._take, person, key, event))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except security.TooLarge as error:
            raise HTTPException(413, "too large") from error

    def _take(self, person: Person, key: str, event: Event) -> dict[str, Any]:
        undone = self.desk.take(person, key, event)
        patch = undone.patch if undone else event.patch
        shown = self._describe_patch(person, patch) if patch in self.desk.names else {"draft": {}}
        return {
            "draft": shown["draft"],
            "undone": {**shown, **undone._asdict()} if undone else None,
            "progress": self.desk.measure_progress(person.number)._asdict(),
        }

    def _get_patch(self, request: Request) -> PatchFile:
        person = self.identify(request, ANNOTATOR, CHIEF)
        patch = parse_number(request.path_params["patch"])
        if not self.desk.is_theirs(person, patch):
            raise HTTPException(404, "There is no such patch.")
        return self.patches[self.desk.names[patch]]

    async def send_patch(self, request: Request) -> Response:
        path = self._get_patch(request).path
        try:
            content = await to_thread.run_sync(path.read_bytes)
        except OSError as error:
            raise HTTPException(404, "The picture is not there any more.") from error
        # Its address changes with the file.
        return Response(content, media_type="image/png", headers={"cache-control": _PATCH_CACHE})

    async def send_surroundings(self, request: Request) -> Response:
        patch, field = self._get_patch(request), parse_number(request.path_params["field"])
        if patch.place is None or field not in FIELDS:
            raise HTTPException(404, "There are no surroundings.")
        try:
            content = await to_thread.run_sync(self._surroundings.draw, patch.place, field)
        except (InputError, OSError) as error:
            raise HTTPException(404, str(error)) from error
        return Response(content, media_type="image/jpeg")


def _refuse_another(person: Person, number: int) -> None:
    """Refuses a page of another person, whose address was opened in the same browser since.

    Raises:
      HTTPException: it is another's (401).
    """
    if number and number != person.number:
        raise HTTPException(401, f"{person.name} has opened this browser since.")
