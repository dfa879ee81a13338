"""Measures the pages of labeling: many people at once, and the time from one patch to the next.

python -m benchmarks.labeling

The program serves `--patches` patches on this machine. `--people` press `--rate` keys a second
each, for `--seconds`; every answer that came must be in the database. Then one person presses keys
in Chromium, where it and playwright are installed: from the key to the next patch being shown.
"""

import argparse
import http.client
import json
import os
import random
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks import measure
from data import patch_files, synthetic
from wsss_jax.labels.store import open_store

_DRAWN = 50  # different pictures; the others are links to them
_BROWSERS = ("chromium", "google-chrome")


def make_project(root: Path, patches: int, size: int) -> None:
    """Draws patches into a folder to be labeled."""
    (root / "patches").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(patches):
        path = root / "patches" / f"p{number:06}.png"
        if number < _DRAWN:
            patch_files.write_image(path, synthetic.draw_patch(rng, size)[0])
        else:
            os.link(root / "patches" / f"p{number % _DRAWN:06}.png", path)


class Server:
    """The program in a process of its own."""

    def __init__(self, root: Path, people: list[str]):
        command = [sys.executable, "main.py", "--config=configs/label.py", "--config.port=0"]
        command += [f"--config.data.root={root}", f"--config.people={tuple(people)!r}"]
        command.append("--config.classes=('tumor','stroma','lymphocytes','necrosis')")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.addresses = {}
        for line in self.process.stdout:
            if found := re.match(r"  (\S+) +(http\S+)$", line):
                self.addresses[found[1]] = found[2]
            if "Ctrl-C" in line:
                return
        raise SystemExit("the server has not started")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Annotator(threading.Thread):
    """Somebody who presses keys, at random moments with a mean rate."""

    def __init__(self, address: str, rate: float, seconds: float):
        super().__init__()
        self._url, self._rate, self._seconds = urlsplit(address), rate, seconds
        self.milliseconds: list[float] = []
        self.stored: list[str] = []  # keys of the events that were answered

    def run(self) -> None:
        dice = random.Random(self._url.path)
        connection = http.client.HTTPConnection(self._url.netloc, timeout=60)
        connection.request("GET", self._url.path)
        reply = connection.getresponse()
        reply.read()
        cookie = (reply.headers["set-cookie"] or "").split(";")[0]
        headers = {"cookie": cookie, "origin": f"http://{self._url.netloc}"}

        def ask(method: str, path: str, body: Any = None) -> Any:
            connection.request(method, path, body and json.dumps(body), headers)
            reply = connection.getresponse()
            content = reply.read()
            if reply.status != 200:
                raise SystemExit(f"{path}: {reply.status}: {content[:200]!r}")
            return json.loads(content) if "json" in reply.headers["content-type"] else content

        end = time.monotonic() + self._seconds
        queue: list[int] = []
        for number in range(10**9):
            time.sleep(dice.expovariate(self._rate))
            if time.monotonic() > end:
                return
            if not queue:
                queue = [each["patch"] for each in ask("GET", "/next")["patches"]]
            if not queue:
                return  # all are answered
            kind, value = (("set", "0=1"), ("set", "2=1"), ("done", "1010"))[number % 3]
            key = secrets.token_hex(16)
            event = {"person": 0, "key": key, "kind": kind, "patch": queue[0]}
            event |= {"value": value, "looked": 0}
            begun = time.perf_counter()
            ask("POST", "/event", event)
            self.milliseconds.append(1000 * (time.perf_counter() - begun))
            self.stored.append(key)
            if kind == "done":
                queue.pop(0)
                if queue:
                    ask("GET", f"/patch/{queue[-1]}")  # as the page loads ahead


def press_keys(address: str, browser: str, count: int) -> list[float]:
    """Answers patches in a browser; returns the milliseconds from Enter to the next patch."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        page.goto(address)
        page.wait_for_selector("#picture[src]:not(.waiting)")
        # In the page itself: what drives it from outside takes longer than the page.
        return page.evaluate(
            """async (count) => {
              const picture = document.getElementById("picture");
              const press = (key) => dispatchEvent(new KeyboardEvent("keydown", { key }));
              const paint = () => new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
              const times = [];
              for (let i = 0; i < count; i++) {
                await new Promise((r) => setTimeout(r, 300));
                const before = picture.src;
                press("4"); // which nobody has set before
                await new Promise((r) => setTimeout(r, 200));
                const begun = performance.now();
                press("Enter");
                while (picture.src === before || picture.classList.contains("waiting"))
                  await new Promise((r) => setTimeout(r, 1));
                await paint();
                times.push(performance.now() - begun);
              }
              return times;
            }""",
            count,
        )


def summarize(what: str, milliseconds: list[float], lost: int | None) -> dict[str, Any]:
    """Makes a row of the table."""
    ordered = sorted(milliseconds)
    return {
        "what": what,
        "keys": len(ordered),
        "median ms": statistics.median(ordered),
        "95 % ms": ordered[int(0.95 * (len(ordered) - 1))],
        "longest ms": ordered[-1],
        "lost": lost,
    }


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for many people, and one for the browser."""
    people = [f"person{number}" for number in range(args.people)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "mine"
        make_project(root, args.patches, args.size)
        begun = time.perf_counter()
        server = Server(root, people)
        print(f"started after {time.perf_counter() - begun:.1f} s")
        try:
            annotators = [
                Annotator(server.addresses[name], args.rate, args.seconds) for name in people
            ]
            for annotator in annotators:
                annotator.start()
            for annotator in annotators:
                annotator.join()
            with open_store(root / "labels.sqlite") as store:
                stored = {recorded.key for recorded in store.list_events()}
            answered = [key for annotator in annotators for key in annotator.stored]
            times = [each for annotator in annotators for each in annotator.milliseconds]
            what = f"{args.people} people, {args.rate:g} keys/s each, to the answer"
            rows = [summarize(what, times, len(set(answered) - stored))]
            if args.browser:
                times = press_keys(server.addresses[people[0]], args.browser, args.keys)
                rows.append(summarize("Chromium, from Enter to the next patch", times, None))
        finally:
            server.stop()
    return rows


def main() -> None:
    parser = measure.make_parser(__doc__)
    parser.add_argument("--patches", type=int, default=20_000)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--keys", type=int, default=50, help="patches answered in the browser")
    args = parser.parse_args()
    args.browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    measure.report("labeling", vars(args), run(args))


if __name__ == "__main__":
    main()
