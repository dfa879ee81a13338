"""Measures the pages of maps on a large slide: the first view, tiles per second, memory.

python -m benchmarks.viewer

The slide has `--side` pixels along both axes (100,000: a resection at 0.25 micrometers), whose
tiles are a few drawn ones again and again, and a map of noise at a quarter of its resolution with
probabilities. Clients ask for tiles at random places, so that nothing is cached. The first view is
timed in Chromium, where it and playwright are installed.
"""

import argparse
import html
import http.client
import json
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import cv2
import numpy as np

from benchmarks import measure
from data.synthetic import DATASET
from data.synthetic_slides import draw_section
from wsss_jax.report.colors import make_legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import cohort, pyramid, result_files
from wsss_jax.slides.reading.catalog import fingerprint

_TILE = 256  # pixels of the slide's tiles
_PATTERN = 2048  # pixels after which the slide repeats itself, a power of 2
_MPP, _MAP_MPP = 0.25, 1.0
_OPTIONS = ["--no-sandbox"]  # of the browser
_LAYERS = (["tissue"], ["classes"], ["outlines"], ["entropy"], ["tissue", "classes"])


def write_slide(path: Path, side: int) -> None:
    """Writes a pyramidal BigTIFF of a pattern that repeats, of which each tile is stored once."""
    section = draw_section(_PATTERN, _PATTERN)
    starts = range(0, _PATTERN, _TILE)
    pattern = np.vstack([np.hstack([section.draw_tile(x, y) for x in starts]) for y in starts])
    with path.open("wb") as file:
        link = 8  # where the offset of the first directory goes
        file.write(b"II" + struct.pack("<HHHQ", 43, 8, 0, 0))
        for level in range(0, 12, 2):
            size, period = -(-side // 2**level), _PATTERN >> level
            small = cv2.resize(pattern, (period, period), interpolation=cv2.INTER_AREA)
            copies = max(1, _TILE // period)
            small = np.tile(small, (copies, copies, 1))
            places = {}
            for y in range(0, len(small), _TILE):
                for x in range(0, len(small), _TILE):
                    pixels = small[y : y + _TILE, x : x + _TILE, ::-1]
                    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
                    places[y // _TILE, x // _TILE] = file.tell(), len(jpeg)
                    file.write(jpeg)
            many = len(small) // _TILE
            across = range(-(-size // _TILE))
            tiles = [places[row % many, column % many] for row in across for column in across]
            link = _write_directory(file, link, size, tiles, _MPP * 2**level)
            if size <= 1024:
                break


def _write_directory(
    file: BinaryIO, link: int, size: int, tiles: list[tuple[int, int]], mpp: float
) -> int:
    """Writes a directory of tiles; returns where the offset of the next one goes."""
    offsets = np.array([offset for offset, _ in tiles], "<u8").tobytes()
    counts = np.array([count for _, count in tiles], "<u8").tobytes()
    many = len(tiles)
    per_cm = struct.pack("<II", round(1e4 / mpp * 1000), 1000)
    entries = [  # tag, type, count, value
        (254, 4, 1, struct.pack("<I", 0 if link == 8 else 1)),
        (256, 4, 1, struct.pack("<I", size)),
        (257, 4, 1, struct.pack("<I", size)),
        (258, 3, 3, struct.pack("<HHH", 8, 8, 8)),
        (259, 3, 1, struct.pack("<H", 7)),  # JPEG
        (262, 3, 1, struct.pack("<H", 6)),  # YCbCr
        (277, 3, 1, struct.pack("<H", 3)),
        (282, 5, 1, per_cm),
        (283, 5, 1, per_cm),
        (284, 3, 1, struct.pack("<H", 1)),
        (296, 3, 1, struct.pack("<H", 3)),  # per centimeter
        (322, 4, 1, struct.pack("<I", _TILE)),
        (323, 4, 1, struct.pack("<I", _TILE)),
        (324, 16, many, offsets),
        (325, 16, many, counts),
        (530, 3, 2, struct.pack("<HH", 2, 2)),  # as OpenCV subsamples
    ]
    written = []
    for tag, kind, count, value in entries:
        if len(value) > 8:
            place = file.tell()
            file.write(value)
            value = struct.pack("<Q", place)
        written.append(struct.pack("<HHQ", tag, kind, count) + value.ljust(8, b"\0"))
    directory = file.tell()
    file.write(struct.pack("<Q", len(written)) + b"".join(written))
    after = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", directory))
    file.seek(0, 2)
    return after


def make_map(root: Path, side: int) -> Path:
    """Writes a slide and the folder of its map; returns the workdir."""
    slide, workdir = root / "large.tif", root / "maps"
    write_slide(slide, side)
    folder = workdir / "large"
    folder.mkdir(parents=True)
    size = round(side * _MPP / _MAP_MPP)
    rng = np.random.default_rng(0)
    few = rng.integers(0, 5, (pyramid.BAND, 64), np.uint8).repeat(8, 1)  # stripes: 8 pixels wide
    row = np.tile(few, (1, -(-size // few.shape[1])))[:, :size]
    frame = MapFrame(size, size, _MAP_MPP, (_MAP_MPP / _MPP,) * 2, (side, side))
    legend = make_legend(DATASET, "dataset")

    def read(y0: int, y1: int, step: int) -> np.ndarray:
        return row[np.arange(y0, y1, step) % len(row)][:, ::step]

    def read_probability(channel: int, y0: int, y1: int, step: int) -> np.ndarray:
        return np.where(read(y0, y1, step) == channel, 200, 18).astype(np.uint8)

    pyramid.write_label_map(folder / result_files.LABEL_MAP, read, frame, legend)
    pyramid.write_probability_maps(
        folder / result_files.PROBABILITIES, read_probability, frame, legend
    )
    cv2.imwrite(str(folder / "thumbnail.png"), np.full((1200, 1200, 3), 240, np.uint8))
    area = {"pixels": 1, "mm2": 1e-6, "share_of_slide": 0.1, "share_of_tissue": 0.1}
    summary = {
        "settings": {
            "map": {"mpp": _MAP_MPP, "slide_mpp": [_MPP, _MPP], "slide": fingerprint(slide)},
            "output": {
                "classes": list(legend.names),
                "palette": [list(color) for color in legend.palette],
            },
        },
        "name": "large",
        "file": str(slide),
        "size": [size, size],
        "levels": [[side, side]],
        "bounds": [0, 0, side, side],
        "files": [result_files.LABEL_MAP, result_files.PROBABILITIES],
        "areas": [{"class": name, **area} for name in legend.names],
        "ratios": {},
        "warnings": [],
        "tiles": 1,
        "tissue_pixels": 1,
    }
    (folder / "slide.json").write_text(json.dumps(summary))
    (workdir / cohort.INDEX).write_text("<html><head></head><body></body></html>")
    return workdir


class Server:
    """The program in a process of its own."""

    def __init__(self, maps: Path, workdir: Path):
        command = [sys.executable, "main.py", "--config=configs/view.py", "--config.port=0"]
        command += [f"--config.maps={maps}", f"--workdir={workdir}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.match(r"  me +(http\S+)$", line):
                self.address = found[1]
            if "Ctrl-C" in line:
                return
        raise SystemExit("the server has not started")

    def measure_memory(self) -> float:
        """Returns megabytes at the peak so far."""
        return measure.read_peak_memory(self.process.pid) / 2**20

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Client(threading.Thread):
    """Asks for tiles at random places of the finest levels."""

    def __init__(self, address: str, state: dict, layers: list[str], seconds: float, seed: int):
        super().__init__()
        self._url, self._state, self._layers = urlsplit(address), state, layers
        self._seconds, self._random = seconds, random.Random(seed)
        self.milliseconds: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._url.netloc)
        cookie = _enter(connection, self._url.path)
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            name = self._random.choice(self._layers)
            layer = self._state["tissue"] if name == "tissue" else self._state["layers"][name]
            level = layer["last"] - self._random.randint(0, 2)
            across = (layer["size"][0] >> (layer["last"] - level)) // layer["side"]
            ending = "jpg" if name == "tissue" else "png"
            place = f"{self._random.randrange(across)}_{self._random.randrange(across)}.{ending}"
            start = time.perf_counter()
            connection.request(
                "GET", f"/maps/large/tiles/{name}/{level}/{place}", headers={"cookie": cookie}
            )
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(content.decode())
            self.milliseconds.append(1000 * (time.perf_counter() - start))


def _enter(connection: http.client.HTTPConnection, path: str) -> str:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return str(answer.getheader("set-cookie")).split(";")[0]


def _read_state(address: str) -> dict:
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.netloc)
    cookie = _enter(connection, url.path)
    connection.request("GET", "/maps/large/view.html", headers={"cookie": cookie})
    page = connection.getresponse().read().decode()
    found = re.search(r'data-state="([^"]*)"', page)
    assert found is not None, page
    return dict(json.loads(html.unescape(found[1])))


def time_first_views(address: str, program: str, times: int) -> list[float]:
    """Times the page from the click to the last tile, in seconds, each in a fresh browser."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as started:
        for _ in range(times):
            browser = started.chromium.launch(
                executable_path=shutil.which(program), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(address)
            page.wait_for_url("**/maps/")
            start = time.perf_counter()
            page.goto(address.split("/enter/")[0] + "/maps/large/view.html")
            page.wait_for_function("() => TissueMap.stage && TissueMap.stage.isStill()")
            seconds.append(time.perf_counter() - start)
            browser.close()
    return seconds


def ask_for_tiles(server: "Server", layers: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Returns a row of the table: how fast tiles of these layers come."""
    state = _read_state(server.address)
    clients = [
        Client(server.address, state, layers, args.seconds, seed) for seed in range(args.clients)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    times = sorted(each for client in clients for each in client.milliseconds)
    what = f"tiles of {' and '.join(layers)}, {args.clients} clients"
    return _make_row(what, times, len(times) / args.seconds, server.measure_memory())


def _make_row(
    what: str, milliseconds: list[float], rate: float | None, memory: float
) -> dict[str, Any]:
    return {
        "what": what,
        "median ms": statistics.median(milliseconds),
        "95 % ms": milliseconds[int(0.95 * len(milliseconds))],
        "tiles/s": rate,
        "memory MB, at the peak so far": memory,
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each kind of tile, and for the first view."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        server = Server(make_map(root, args.side), root / "view")
        try:
            if shutil.which(args.browser):
                first, *others = time_first_views(server.address, args.browser, 4)
                for what, seconds in (("", first), (" again", statistics.median(others))):
                    what = f"first view{what}, to the last tile"
                    memory = server.measure_memory()
                    rows.append(_make_row(what, [1000 * seconds], None, memory))
            for layers in _LAYERS:
                rows.append(ask_for_tiles(server, layers, args))
        finally:
            server.stop()
    return rows


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--browser", default="chromium", help="its program")
    args = parser.parse_args()
    measure.report("viewer", vars(args), run(args))


if __name__ == "__main__":
    main()
