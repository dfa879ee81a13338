"""People who label in a real browser, with keys, undo, a killed server and a killed browser."""

import os
import random
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from configs import base_labels
from data import synthetic
from data.dataset import load_dataset
from tests.conftest import tiny_phase1
from tests.web.drawn_project import sample_project
from tests.web.labeling_server import Server
from wsss_jax import jobs
from wsss_jax.labels.replay import Replay
from wsss_jax.labels.store import open_store

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MARK = f"--labeling-test-{os.getpid()}"  # by which this test's browsers are found
SEED = int(os.environ.get("KILL_SEED", "0"))  # of what people do, and when something is killed
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium"),
    pytest.mark.xdist_group("browser"),
]


def kill_browsers():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MARK in (folder / "cmdline").read_text().split("\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:  # it has ended meanwhile
            continue


class Person:
    """Presses keys, and waits for what a person would wait for."""

    def __init__(self, page, labels):
        self.page, self._labels, self.keys = page, labels, 0

    def shown(self):
        """Returns the number of the patch that is shown; 0 = all are answered."""
        self.page.wait_for_selector("#picture[aria-busy=false]", state="attached", timeout=60_000)
        source = self.page.get_attribute("#picture", "src") or ""
        return int(re.search(r"/patch/(\d+)", source)[1]) if source else 0

    def press(self, key, condition, arg=None):
        self.page.wait_for_selector("#picture[aria-busy=false]", state="attached", timeout=60_000)
        self.page.keyboard.press(key)
        self.keys += 1
        self.page.wait_for_function(condition, arg=arg, timeout=60_000)

    def set(self, index):
        before = self.is_set(index)
        self.press(
            str(index + 1),
            "([index, before]) => (document.querySelector(`li[data-class='${index}'] "
            "[data-value='1']`).getAttribute('aria-pressed') === 'true') !== before",
            [index, before],
        )

    def is_set(self, index):
        selector = f"li[data-class='{index}'] [data-value='1']"
        return self.page.get_attribute(selector, "aria-pressed") == "true"

    def leave(self, key):
        source = self.page.get_attribute("#picture", "src")
        self.press(key, "s => document.getElementById('picture').getAttribute('src') !== s", source)

    def answer(self, label):
        for index, value in enumerate(label):
            if self.is_set(index) != bool(value):
                self.set(index)
        self.leave("Enter")

    def answer_rightly(self):
        self.answer(self._labels[self.shown()])

    def answer_wrongly_and_undo(self, dice):
        patch = self.shown()
        wrong = [int(dice.random() < 0.5) for _ in range(4)]
        wrong[dice.randrange(4)] = 1
        self.answer(wrong)
        self.leave("Backspace")
        assert self.shown() == patch
        for index in reversed([i for i, value in enumerate(wrong) if value]):
            assert self.is_set(index)
            self.press(
                "Backspace",
                "i => document.querySelector(`li[data-class='${i}'] [data-value='1']`)"
                ".getAttribute('aria-pressed') === 'false'",
                index,
            )


def open_page(play, address):
    browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", MARK])
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address)
    return page


def test_two_people_label_and_a_network_learns_from_it(tmp_path):
    root = tmp_path / "mine"
    truth = sample_project(root, tmp_path / "slides")
    total = len(truth)
    assert total > 20
    server = Server(root, tmp_path / "server.log", ("Ann", "Bob"))
    dice = random.Random(SEED)
    with open_store(root / "labels.sqlite") as store:
        numbers = store.list_patches()
    said = {"Ann": {}, "Bob": {}}
    for name, label in truth.items():
        for person in said:
            said[person][numbers[name]] = list(label)
        if dice.random() < 0.3:  # Bob errs
            wrong = list(label)
            wrong[dice.randrange(4)] ^= 1
            said["Bob"][numbers[name]] = wrong if any(wrong) else [1 - value for value in label]
    restarts: list[threading.Thread] = []
    keys = 0
    with playwright.sync_playwright() as play:
        for name in said:
            server_dies, browser_dies = sorted(dice.sample(range(5, total - 5), 2))
            person = Person(open_page(play, server.addresses[name]), said[name])
            for count in range(total):
                if count == server_dies:
                    delay = dice.uniform(0, 0.3)
                    restart = threading.Timer(delay, server.kill_and_start)
                    restart.start()
                    restarts.append(restart)
                if count == browser_dies:
                    patch = person.shown()
                    half = said[name][patch].index(1)  # of an answer
                    person.set(half)
                    kill_browsers()
                    keys += person.keys
                    for restart in restarts:  # somebody who opens it meanwhile tries again
                        restart.join()
                    person = Person(open_page(play, server.addresses[name]), said[name])
                    person.page.wait_for_selector("#picture[src]")
                    assert person.shown() == patch and person.is_set(half)
                if dice.random() < 0.2:
                    person.answer_wrongly_and_undo(dice)
                person.answer_rightly()
            assert person.shown() == 0
            assert person.page.inner_text("#progress") == f"{total} of {total}"
            keys += person.keys
        for restart in restarts:
            restart.join()
        assert keys > 200
        chief = open_page(play, server.addresses["chief"])
        chief.get_by_role("link", name="disagreements").click()
        disputed = chief.locator(".settle").count()
        assert disputed == sum(said["Ann"][n] != said["Bob"][n] for n in numbers.values()) > 0
        while chief.locator(".settle").count():  # the chief agrees with Ann
            form = chief.locator(".settle").first
            form.locator("li", has_text="Ann").get_by_role("button").click()
            assert "/chief/patches" in chief.url
        chief.goto(chief.url.split("/chief")[0] + "/chief")
        chief.get_by_role("button", name="Export").click()
        assert f"{disputed} settled" in chief.inner_text(".notice")
        kill_browsers()
    server.stop()
    with open_store(root / "labels.sqlite") as store:
        events, people = list(store.list_events()), store.list_people()
    for person in people[:2]:
        answers = Replay(e.event for e in events if e.person == person.number).answers
        found = {patch: list(map(int, event.value)) for patch, event in answers.items()}
        assert found == said[person.name]
        assert all(event.looked < 60_000 for event in answers.values())
    exported = root / "labeled"
    names = {path.name for path in (exported / "train").iterdir()}
    assert names == {
        f"{Path(name).stem}-[{' '.join(map(str, label))}].png" for name, label in truth.items()
    }
    assert load_dataset("", exported) == synthetic.DATASET
    # The same without a browser gives the same bytes.
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    config = base_labels.export_labels()
    config.data.root = str(root)
    jobs.run(config, tmp_path / "export")
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    training = tiny_phase1(exported)
    training.epochs = 1
    jobs.run(training, tmp_path / "phase1")
    assert (tmp_path / "phase1" / "history.json").is_file()
