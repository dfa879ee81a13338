"""The addresses at which a page of maps sends corrections, and asks which there are."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wsss_jax.errors import InputError
from wsss_jax.labels.corrections import Asked, Corrections
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.web import security
from wsss_jax.web.pages import now


class Sent(NamedTuple):
    """What a page sends.

    Attributes:
      key: chosen by the page; what is sent twice with one key counts once.
      slide: name of the slide.
      center: x and y in level-0 pixels; None to take back the last correction.
      answer: such as "0110", or "?": cannot tell; "" to take back.
    """

    key: str
    slide: str
    center: tuple[float, float] | None = None
    answer: str = ""


class CorrectionPages:
    """Answers requests about the corrections of some slides."""

    def __init__(
        self,
        corrections: Corrections,
        find_slide: Callable[[str], SlideFile],
        identify: Callable[[Request], str],
    ):
        """Prepares the addresses.

        Args:
          corrections: those that are there.
          find_slide: finds a slide by its name; raises InputError where there is none.
          identify: name of the person who sends a request; raises HTTPException for nobody.
        """
        self._corrections, self._find_slide, self._identify = corrections, find_slide, identify

    def list_routes(self) -> list[Route]:
        return [
            Route("/correction", self.take, methods=["POST"]),
            Route("/correction/undo", self.undo, methods=["POST"]),
            Route("/corrections/{slide}", self.list_of_slide),
        ]

    async def take(self, request: Request) -> Response:
        """Takes {key, slide, x, y, answer}; answers with the correction, as in the list."""
        return await self._answer(request, self._take, takes_back=False)

    async def undo(self, request: Request) -> Response:
        """Takes {key, slide}; answers with {undone, now}: what is gone, and what holds there."""
        return await self._answer(request, self._undo, takes_back=True)

    async def list_of_slide(self, request: Request) -> Response:
        """Lists the corrections of all people on a slide."""
        self._identify(request)
        slide = request.path_params["slide"]
        try:
            self._find_slide(slide)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        found = await to_thread.run_sync(self._corrections.list_of_slide, slide)
        return JSONResponse([each._asdict() for each in found])

    async def _answer(
        self, request: Request, act: Callable[[Asked, Sent], Any], *, takes_back: bool
    ) -> Response:
        person = self._identify(request)
        try:
            sent = parse_sent(await security.read_body(request), takes_back=takes_back)
            self._find_slide(sent.slide)
            asked = Asked(person, sent.key, now())
            # In a thread: the slide is read.
            return JSONResponse(await to_thread.run_sync(act, asked, sent))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        except security.TooLarge as error:
            raise HTTPException(413, "too large") from error

    def _take(self, asked: Asked, sent: Sent) -> dict[str, Any]:
        assert sent.center is not None
        slide = self._find_slide(sent.slide)
        return self._corrections.take(asked, slide, sent.center, sent.answer)._asdict()

    def _undo(self, asked: Asked, sent: Sent) -> dict[str, Any]:
        found = self._corrections.undo(asked, sent.slide)
        if found is None:
            return {"undone": None, "now": None}
        return {"undone": found.undone._asdict(), "now": found.now and found.now._asdict()}


def parse_sent(body: bytes, *, takes_back: bool) -> Sent:
    """Reads what a page sends: JSON with key and slide, and x, y and answer of a correction.

    Raises:
      InputError: it is something else.
    """
    names = ("key", "slide") if takes_back else ("key", "slide", "answer", "x", "y")
    try:
        fields: Any = json.loads(body)
        texts = [fields[name] for name in names[:3]]
        numbers = [fields[name] for name in names[3:]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"a correction is JSON with {', '.join(names)}: {error}") from error
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{', '.join(names[:3])} of a correction are texts")
    key, slide, *answer = texts
    if not all(text.isascii() for text in (key, *answer)):
        raise InputError("key and answer of a correction are texts of ASCII")
    if takes_back:
        return Sent(key, slide)
    # Neither NaN nor infinity, which Python's JSON knows, is below the bound.
    if not all(type(number) in (int, float) and abs(number) < 2**53 for number in numbers):
        raise InputError("x and y of a correction are numbers of pixels")
    x, y = map(float, numbers)
    return Sent(key, slide, (x, y), answer[0])
