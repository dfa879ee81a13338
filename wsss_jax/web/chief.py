"""The chief's pages: how far people are and agree, what they disagree on, and the export."""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from wsss_jax.errors import InputError
from wsss_jax.labels import consensus
from wsss_jax.labels.replay import CANNOT_TELL, DONE, UNDO, Event
from wsss_jax.labels.review import Agreement, Reviewed, compare_people, review
from wsss_jax.labels.store import CHIEF
from wsss_jax.web import security
from wsss_jax.web.labeling import Labeling
from wsss_jax.web.pages import TEMPLATES, now, parse_number

_ON_A_PAGE = 20  # patches
_PLACE = {"how": "how", "class": "chosen", "page": "page"}  # in an address -> in a form
_FILTERS = {  # what the list can be narrowed to
    consensus.DISAGREEMENT: "disagreements",
    consensus.SETTLED: "settled",
    consensus.DROPPED: "cannot tell",
    consensus.WAITING: "waiting for answers",
    consensus.UNANIMOUS: "unanimous",
    consensus.MAJORITY: "majority",
}


class Chief:
    """Answers the chief's requests."""

    def __init__(self, labeling: Labeling, rule: str, export: Callable[[], Counter[str]], out: str):
        """Prepares the pages.

        Args:
          labeling: the pages of the annotators.
          rule: of `consensus.RULES`.
          export: writes the data set; returns what became of the patches.
          out: where it is written.
        """
        self._labeling, self._desk = labeling, labeling.desk
        self._rule, self._export, self._out = rule, export, out
        self._message = ""  # of the last export, until it is shown

    def list_routes(self) -> list[Route]:
        return [
            Route("/chief", self.show_overview),
            Route("/chief/patches", self.show_patches),
            Route("/chief/settle", self.settle, methods=["POST"]),
            Route("/chief/export", self.export, methods=["POST"]),
        ]

    async def show_overview(self, request: Request) -> Response:
        self._labeling.identify(request, CHIEF)
        reviewed = await to_thread.run_sync(review, self._desk, self._rule)
        message, self._message = self._message, ""
        return await self._render_overview(reviewed, message)

    async def _render_overview(self, reviewed: list[Reviewed], message: str) -> Response:
        # In a thread: of many patches it takes a while, in which others go on.
        agreement = await to_thread.run_sync(compare_people, self._desk, reviewed)
        counts = Counter(each.consensus.how for each in reviewed)
        page = TEMPLATES.get_template("chief.html").render(
            message=message,
            classes=self._desk.classes,
            people=[(p.name, self._desk.measure_progress(p.number)) for p in self._desk.annotators],
            filters=[(how, title, counts[how]) for how, title in _FILTERS.items()],
            agreement=agreement,
            tables=_list_agreement(agreement),
            rule=self._rule,
            out=self._out,
        )
        return HTMLResponse(page)

    async def show_patches(self, request: Request) -> Response:
        self._labeling.identify(request, CHIEF)
        how = request.query_params.get("how", consensus.DISAGREEMENT)
        name = request.query_params.get("class", "")
        number = parse_number(request.query_params.get("page", "1"))
        if how not in _FILTERS or (name and name not in self._desk.classes):
            raise HTTPException(400, "There is no such list.")
        index = self._desk.classes.index(name) if name else None
        reviewed = await to_thread.run_sync(review, self._desk, self._rule)
        found = [each for each in reviewed if each.consensus.how == how and _concerns(each, index)]
        pages = max(1, math.ceil(len(found) / _ON_A_PAGE))
        page = min(max(1, number), pages)
        shown = found[(page - 1) * _ON_A_PAGE : page * _ON_A_PAGE]
        html = TEMPLATES.get_template("patches.html").render(
            classes=self._desk.classes,
            how=how,
            title=_FILTERS[how],
            filters=_FILTERS,
            chosen=name,
            count=len(found),
            page=page,
            pages=pages,
            patches=[self._describe(each) for each in shown],
            undo_key=secrets.token_hex(16),
            has_surroundings=any(each.place for each in self._labeling.patches.values()),
        )
        return HTMLResponse(html)

    def _describe(self, each: Reviewed) -> dict[str, Any]:
        """Describes a patch for the list: what people say, and what most of them do."""
        classes, label = self._desk.classes, each.consensus.label
        by_answer: dict[str, list[str]] = {}
        for person, answer in each.answers.items():
            by_answer.setdefault(answer, []).append(person)
        votes = [answer for answer in each.answers.values() if answer != CANNOT_TELL]
        return {
            "number": each.number,
            "name": each.name,
            "picture": self._labeling.name_picture(each.number),
            "key": secrets.token_hex(16),
            "answers": [
                (answer, name_answer(answer, classes), people)
                for answer, people in by_answer.items()
            ],
            "checked": [
                bool(label[c]) if label else 2 * sum(v[c] == "1" for v in votes) > len(votes)
                for c in range(len(classes))
            ],
            "settled": name_answer("".join(map(str, label)), classes) if label else "",
        }

    async def settle(self, request: Request) -> Response:
        """Takes the chief's answer for a patch, or takes the last one back."""
        person = self._labeling.identify(request, CHIEF)
        form = await _read_form(request)
        index = range(len(self._desk.classes))
        answers = {
            "settle": "".join(str(int(str(c) in form.get("class", ()))) for c in index),
            "drop": CANNOT_TELL,
        }
        answer, *_ = form.get("answer", [""])
        patch, *_ = form.get("patch", [""])
        key, *_ = form.get("key", [""])
        value = answers.get(answer, answer)  # or one of those that people have given
        event = (
            Event(UNDO, 0, time=now())
            if answer == "undo"
            else Event(DONE, parse_number(patch), value, time=now())
        )
        try:
            await to_thread.run_sync(self._desk.take, person, key, event)
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        place = {name: form.get(field, [""])[0] for name, field in _PLACE.items()}
        return RedirectResponse(f"/chief/patches?{urlencode(place)}", 303)

    async def export(self, request: Request) -> Response:
        self._labeling.identify(request, CHIEF)
        await _read_form(request)
        try:
            counts = await to_thread.run_sync(self._export)
        except InputError as error:
            self._message = f"Not exported: {error}"
        except OSError as error:
            self._message = f"Not exported: {error.filename or self._out}: {error.strerror}"
        else:
            listed = ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
            self._message = f"Exported to {self._out}: {listed}."
        return RedirectResponse("/chief", 303)  # which may be loaded again


async def _read_form(request: Request) -> dict[str, list[str]]:
    """Reads the fields of a form."""
    try:
        body = await security.read_body(request)
        return parse_qs(body.decode("ascii"), max_num_fields=1000)
    except security.TooLarge as error:
        raise HTTPException(413, "too large") from error
    except ValueError as error:
        raise HTTPException(400, "This is no form of these pages.") from error


def _concerns(each: Reviewed, index: int | None) -> bool:
    """Whether somebody sees a class in a patch; None = any class."""
    if index is None:
        return True
    answers = each.answers.values()
    return any(answer[index] == "1" for answer in answers if answer != CANNOT_TELL)


def name_answer(answer: str, classes: Sequence[str]) -> str:
    """Says an answer in words, such as "tumor + stroma"."""
    if answer == CANNOT_TELL:
        return "cannot tell"
    named = [name for name, value in zip(classes, answer, strict=True) if value == "1"]
    return " + ".join(named) or "none of them"


def _list_agreement(found: Agreement) -> list[tuple[str, Sequence[float]]]:
    """Lists the lines of the table of agreement: what it is, and its value for each class."""
    return [
        *(
            (f"Cohen's kappa, {a} and {b}", values.tolist())
            for (a, b), values in found.cohen.items()
        ),
        ("Fleiss' kappa", found.fleiss.tolist()),
        ("Krippendorff's alpha", found.krippendorff.tolist()),
    ]
