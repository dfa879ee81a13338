"""Who may see pages: people whose address holds their token, once, and a cookie from then on."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from wsss_jax.web import security
from wsss_jax.web.pages import TEMPLATES

_YEAR = 365 * 24 * 3600
_T = TypeVar("_T")


class Access(Generic[_T]):
    """Lets people in."""

    def __init__(self, cookie: str, list_owners: Callable[[], Iterable[tuple[str, _T]]]):
        """Prepares for people who may change while pages are served.

        Args:
          cookie: its name, another one for each port: browsers do not tell ports apart.
          list_owners: lists tokens, and whose they are.
        """
        self._cookie, self._list_owners = cookie, list_owners

    def list_routes(self) -> list[Route]:
        return [Route("/enter/{token}", self.enter)]

    def identify(self, request: Request) -> _T:
        """Says who sends a request.

        Raises:
          HTTPException: nobody who is known (401).
        """
        owner = self._find(request.cookies.get(self._cookie, ""))
        if owner is None:
            raise HTTPException(401, "Open the address that was given to you.")
        return owner

    def _find(self, token: str) -> _T | None:
        return security.find_owner(token, self._list_owners())

    async def enter(self, request: Request) -> Response:
        """Exchanges the token in the address for a cookie, once."""
        token = request.path_params["token"]
        if self._find(token) is None:
            raise HTTPException(401, "This address opens nothing. Ask for your own.")
        # A page instead of a redirection: browsers would not send the cookie along where the
        # address was opened from another site, such as webmail.
        response = HTMLResponse(TEMPLATES.get_template("enter.html").render())
        response.set_cookie(
            self._cookie, token, max_age=_YEAR, httponly=True, samesite="strict", path="/"
        )
        return response
