"""The pages on which maps are looked at: the cohort, and each slide down to its cells."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, hold_lock
from wsss_jax.labels.correction_folder import Field
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.pages import TEMPLATES as REPORT_TEMPLATES
from wsss_jax.slides.outputs import cohort, result_files, results
from wsss_jax.slides.viewing import counting, page_state, pictures, static_copy
from wsss_jax.slides.viewing.collection import Collection, SlideMap
from wsss_jax.slides.viewing.grid import Box, TileGrid
from wsss_jax.web import security
from wsss_jax.web.access import Access
from wsss_jax.web.pages import KEYS, LOOKS, STATIC, TEMPLATES, StaticFiles, parse_number

OPENSEADRAGON = "openseadragon-6.1.1.min.js"
_SCRIPTS = (
    "paint.js",
    "drawer.js",
    "stage.js",
    "region.js",
    "places.js",
    "corrections.js",
    "view.js",
)
FILES = LOOKS | {
    **{name: STATIC / name for name in ("view.css", "copy.css", "chief.css")},
    **{name: STATIC / name for name in _SCRIPTS},
    OPENSEADRAGON: STATIC / "vendor" / OPENSEADRAGON,
}
_TABLES = (cohort.TABLE, result_files.AREAS, result_files.RATIOS, cohort.FAILURES)
_FEW_CORNERS, _MOST_CORNERS = 3, 2000
_CACHE = "private, max-age=3600"  # of tiles, whose address changes with the map
# Reports and the page of the cohort are single files, with style and script in them.
_FILE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; object-src 'self'; "
    "script-src {}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_KNOWN_SCRIPTS = {path.read_bytes().strip() for path in REPORT_TEMPLATES.glob("*.js")}
_T = TypeVar("_T")


class Viewer:
    """Answers requests about the maps of a workdir."""

    def __init__(
        self, workdir: Path, maps: Collection, access: Access[str], corrected: Field | None = None
    ):
        """Prepares the pages.

        Args:
          workdir: of the maps.
          maps: those in it.
          access: who may see them, by name.
          corrected: the patches in which they may be corrected; None = they may not.
        """
        self._workdir, self._maps, self._access = workdir, maps, access
        self._corrected = corrected
        self._static = StaticFiles(FILES)

    def list_routes(self) -> list[Route]:
        return [
            *self._access.list_routes(),
            *self._static.list_routes(),
            Route("/", self.show_start),
            Route("/maps/", self.show_cohort),
            Route("/maps/{file}", self.send_table),
            Route("/maps/{name}/view.html", self.show_map),
            Route("/maps/{name}/tiles/{layer}/{level}/{tile}", self.send_tile),
            Route("/maps/{name}/point", self.read_point),
            Route("/maps/{name}/count", self.count, methods=["POST"]),
            Route("/maps/{name}/places/{number}.jpg", self.send_place),
            Route("/maps/{name}/{file}", self.send_file),
        ]

    async def show_start(self, request: Request) -> Response:
        self._access.identify(request)
        return RedirectResponse("/maps/", 303)

    async def show_cohort(self, request: Request) -> Response:
        self._access.identify(request)
        index = self._workdir / cohort.INDEX
        if index.is_file():
            return await to_thread.run_sync(_send_page, index)
        # Maps that were corrected elsewhere have none.
        template = TEMPLATES.get_template("maps.html")
        names = await to_thread.run_sync(self._maps.list_names)
        return HTMLResponse(template.render(folder=self._workdir.name, names=names))

    async def send_table(self, request: Request) -> Response:
        """Sends one of the tables that the page of the cohort names."""
        self._access.identify(request)
        file = request.path_params["file"]
        if file not in _TABLES or not (self._workdir / file).is_file():
            raise HTTPException(404, "There is no such file.")
        return FileResponse(self._workdir / file)

    async def show_map(self, request: Request) -> Response:
        person = self._access.identify(request)
        state = await self._ask(request, page_state.describe_map)
        name = request.path_params["name"]
        version = (self._maps.find_folder(name) / results.SUMMARY).stat().st_mtime_ns
        state |= {"folder": name, "version": f"{version:x}"}
        if self._corrected is not None:
            side = self._corrected.size * self._corrected.mpp  # micrometers
            count = len(state["classes"])
            state["corrections"] = {
                "person": person,
                "size": [side / mpp for mpp in state["mpp"]],
                "keys": KEYS[:count],
                "titles": list(KEYS[:count].upper()),
            }
        return HTMLResponse(render_page(state, person))

    async def _ask(self, request: Request, ask: Callable[[SlideMap], _T]) -> _T:
        """Asks a map something, in a thread."""

        def answer() -> _T:
            with self._maps.use(request.path_params["name"]) as opened:
                return ask(opened)

        try:
            return await to_thread.run_sync(answer)
        except (InputError, OSError) as error:
            raise HTTPException(404, str(error)) from error

    async def send_tile(self, request: Request) -> Response:
        self._access.identify(request)
        layer, level = request.path_params["layer"], parse_number(request.path_params["level"])
        match = re.fullmatch(r"(\d{1,6})_(\d{1,6})\.(jpg|png)", request.path_params["tile"])
        if match is None:
            raise HTTPException(404, "There is no such tile.")
        tile = level, int(match[1]), int(match[2])
        content = await self._ask(request, lambda opened: draw_tile(opened, layer, *tile))
        media_type = "image/jpeg" if layer == page_state.TISSUE else "image/png"
        return Response(content, media_type=media_type, headers={"cache-control": _CACHE})

    async def read_point(self, request: Request) -> Response:
        """Says what the map holds at a place in level-0 pixels."""
        self._access.identify(request)
        try:
            x, y = (float(request.query_params[axis]) for axis in "xy")
        except (KeyError, ValueError) as error:
            raise HTTPException(400, "This is no position.") from error
        return JSONResponse(await self._ask(request, lambda opened: _read_point(opened, x, y)))

    async def count(self, request: Request) -> Response:
        """Counts the classes inside of a polygon, whose corners are in level-0 pixels."""
        self._access.identify(request)
        corners = _parse_corners(await _read_json(request))
        return JSONResponse(await self._ask(request, lambda opened: _count(opened, corners)))

    async def send_place(self, request: Request) -> Response:
        """Sends a picture of a place that deserves a look."""
        self._access.identify(request)
        number = parse_number(request.path_params["number"])
        content = await self._ask(request, lambda opened: _draw_place(opened, number))
        return Response(content, media_type="image/jpeg", headers={"cache-control": _CACHE})

    async def send_file(self, request: Request) -> Response:
        """Sends one of the files that the report names."""
        self._access.identify(request)
        name, file = request.path_params["name"], request.path_params["file"]
        try:
            if file == slide_pictures.PREVIEW:  # of a map that is not finished
                return FileResponse(self._maps.find_preview(name))
            folder = self._maps.find_folder(name)
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        if file == slide_pages.REPORT:
            return await to_thread.run_sync(_send_page, folder / file)
        summary = results.read_summary(folder) or {"files": []}
        listed = {*summary["files"], results.SUMMARY, slide_pictures.SMALL}
        if file not in listed or not (folder / file).is_file():
            raise HTTPException(404, "There is no such file.")
        return FileResponse(folder / file)


def render_page(state: Mapping[str, Any], person: str, static: str = "/static/") -> str:
    """Renders the page of a map.

    Args:
      state: from `page_state.describe_map`, with the name of its `folder` and its `version`.
      person: who looks at it; "" = a copy without a server.
      static: where the page finds styles and scripts.
    """
    return TEMPLATES.get_template("view.html").render(
        state=state,
        person=person,
        corrections=state.get("corrections"),
        static=static,
        scripts=(OPENSEADRAGON, *_SCRIPTS),
    )


def write_copy(opened: SlideMap, source: Path, folder: Path, finest: float) -> int:
    """Writes the page of a map with its tiles as files, or continues what was interrupted.

    Args:
      opened: the map.
      source: its folder of results.
      folder: for the copy; created if missing.
      finest: micrometers per pixel of the finest tiles of tissue; 0 = those of the slide.

    Returns:
      bytes of all files.

    Raises:
      InputError: the folder holds something else, a file of the map is damaged, or another process
        writes the copy.
    """
    with hold_lock(folder.with_name(f".{folder.name}.lock")):
        state = static_copy.write_tiles(opened, folder, finest, draw_tile)
        static_copy.copy_files(FILES, folder / "page")
        report = source / slide_pages.REPORT
        static_copy.copy_report(report, folder, b'<link rel="stylesheet" href="page/copy.css">')
        with atomic_path(folder / static_copy.PAGE) as temporary:  # last: all is there
            temporary.write_text(render_page(state, "", "page/"), encoding="utf-8")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _send_page(path: Path) -> Response:
    """Sends a page that is a single file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HTTPException(404, "There is no such page.") from error
    # No other script runs, whatever a page holds.
    scripts = [each for each in _SCRIPT.findall(content) if each.strip() in _KNOWN_SCRIPTS]
    hashes = (base64.b64encode(hashlib.sha256(each).digest()).decode() for each in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return HTMLResponse(content, headers={"content-security-policy": _FILE_POLICY.format(allowed)})


def draw_tile(opened: SlideMap, layer: str, level: int, column: int, row: int) -> bytes:
    """Draws a tile of the tissue or of a layer of the map.

    Raises:
      InputError: there is no such tile, or a file is damaged there.
    """
    if layer == page_state.TISSUE and opened.tissue is not None:
        box = _locate(opened.tissue.grid, level, column, row)
        return pictures.encode_tissue(opened.tissue.read(level, box))
    if layer not in opened.layers.list_names():
        raise InputError(f"there is no layer {layer!r}")
    box = _locate(opened.layers.get_grid(layer), level, column, row)
    return pictures.encode_gray(opened.layers.read(layer, level, box))


def _locate(grid: TileGrid, level: int, column: int, row: int) -> Box:
    box = grid.locate(level, column, row)
    if box is None:
        raise InputError(f"there is no tile {column}, {row} at level {level}")
    return box


def _read_point(opened: SlideMap, x: float, y: float) -> dict[str, Any]:
    column, row = (int(value // scale) for value, scale in zip((x, y), opened.frame.scale))
    label, probabilities = opened.layers.read_point(column, row)
    return {"label": label, "pixel": [column, row], "probabilities": probabilities}


def _count(opened: SlideMap, corners: list[tuple[float, float]]) -> dict[str, Any]:
    excluded = opened.legend.excluded
    found = counting.count_in_polygon(opened.labels, opened.frame, excluded, corners)
    mm2 = (opened.frame.mpp / 1000) ** 2
    total = sum(found.pixels[:excluded])
    return {
        "pixels": found.pixels,
        "mm2": [pixels * mm2 for pixels in found.pixels],
        "shares": [pixels / total if total else None for pixels in found.pixels[:excluded]],
        "step": found.step,
    }


def _draw_place(opened: SlideMap, number: int) -> bytes:
    places = page_state.list_places(opened.summary)
    if number >= len(places) or opened.tissue is None:
        raise InputError(f"there is no picture of place {number}")
    return pictures.draw_place(opened.tissue, places[number]["box"])


async def _read_json(request: Request) -> Any:
    try:
        return json.loads(await security.read_body(request))
    except security.TooLarge as error:
        raise HTTPException(413, "too large") from error
    except ValueError as error:
        raise HTTPException(400, "This is no request of these pages.") from error


def _parse_corners(value: Any) -> list[tuple[float, float]]:
    """Reads the corners of a polygon.

    Raises:
      HTTPException: they are none (400).
    """
    try:
        corners = [(float(x), float(y)) for x, y in value["corners"]]
    except (TypeError, ValueError, KeyError) as error:
        raise HTTPException(400, "This is no polygon.") from error
    is_small = all(abs(x) < 1e9 and abs(y) < 1e9 for x, y in corners)  # not NaN, either
    if not (_FEW_CORNERS <= len(corners) <= _MOST_CORNERS and is_small):
        raise HTTPException(400, f"A polygon has {_FEW_CORNERS} to {_MOST_CORNERS} corners.")
    return corners
