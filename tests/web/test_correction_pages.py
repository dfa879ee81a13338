"""Corrections as a page sends them: what is stored and listed, and what is refused."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient

from tests.labels.correction_tools import ORIGIN, draw_slide
from wsss_jax.errors import InputError
from wsss_jax.labels.corrections import Corrections, open_corrections
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.web import security
from wsss_jax.web.corrections import CorrectionPages, parse_sent
from wsss_jax.web.pages import make_app

HERE = "http://127.0.0.1:8765"
NASTY = "<img src=x onerror='alert(1)'>"


class Site(NamedTuple):
    """A server of corrections, as the one of maps hands out its addresses."""

    client: TestClient
    corrections: Corrections

    def post(self, path="/correction", person="Ann", origin=HERE, **fields):
        body = {"key": "k", "slide": "a", "x": 100, "y": 100, "answer": "1000"} | fields
        headers = {"origin": origin, "x-person": person}
        return self.client.post(path, content=json.dumps(body), headers=headers)

    def get(self, slide="a", person="Ann"):
        return self.client.get(f"/corrections/{slide}", headers={"x-person": person})


def identify(request: Request) -> str:
    if not (name := request.headers.get("x-person")):
        raise HTTPException(401, "Open the address that was given to you.")
    return name


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    slides = {
        name: SlideFile(draw_slide(tmp_path / "slides", f"s{seed}", seed=seed).path, name, None)
        for seed, name in enumerate(("a", "b", NASTY.replace("/", "_")))
    }
    slides["gone"] = SlideFile(tmp_path / "gone.svs", "gone", None)

    def find_slide(name: str) -> SlideFile:
        if name not in slides:
            raise InputError("there is no such slide")
        return slides[name]

    with open_corrections(tmp_path / "corrections", ORIGIN) as corrections:
        routes = CorrectionPages(corrections, find_slide, identify).list_routes()
        app = make_app(routes, security.list_hosts("127.0.0.1"))
        yield Site(TestClient(app, base_url=HERE), corrections)


def test_a_correction_is_stored_listed_and_taken_back(site):
    sent = site.post().json()
    assert sent["x"] == sent["y"] == 100 and sent["size"] == 128
    assert (sent["slide"], sent["person"], sent["answer"]) == ("a", "Ann", "1000")
    assert site.post().json() == sent  # once more with its key
    site.post(key="l", answer="0001", person="Bob", x=300.5)
    listed = site.get().json()
    assert listed[0] == sent and [each["person"] for each in listed] == ["Ann", "Bob"]
    assert set(sent) == {"number", "slide", "x", "y", "size", "answer", "person", "time"}
    assert site.get("b").json() == []
    changed = site.post(key="m", answer="?").json()
    assert changed["number"] == sent["number"]
    undone = site.post("/correction/undo", key="n").json()
    assert undone == {"undone": changed, "now": sent}
    assert site.post("/correction/undo", key="n").json() == undone
    assert site.post("/correction/undo", key="o").json() == {"undone": sent, "now": None}
    assert site.post("/correction/undo", key="p").json() == {"undone": None, "now": None}
    assert [each["person"] for each in site.get().json()] == ["Bob"]


@pytest.mark.parametrize(
    "fields",
    [
        {"slide": "none"},
        {"slide": "../a"},
        {"slide": 1},
        {"slide": "\ud800"},
        {"slide": "gone"},
        {"key": ""},
        {"key": "x" * 65},
        {"key": "ä"},
        {"key": None},
        {"x": "1"},
        {"x": True},
        {"y": float("nan")},
        {"y": float("-inf")},
        {"x": 1e300},
        {"answer": "10"},
        {"answer": "<b>"},
        {"answer": 1000},
        {"answer": ["1", "0", "0", "0"]},
    ],
)
def test_other_corrections_are_refused_in_one_line(site, fields):
    answer = site.post(**fields)
    assert answer.status_code == 400 and len(answer.text.splitlines()) == 1, answer.text
    assert site.get().json() == []
    if not fields.keys() & {"x", "y", "answer"} and fields != {"slide": "gone"}:
        assert site.post("/correction/undo", **fields).status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"key": "k"}', b"\xff", b"[" * 60_000])
def test_what_is_no_correction_is_refused(site, body):
    for path in ("/correction", "/correction/undo"):
        headers = {"origin": HERE, "x-person": "Ann"}
        answer = site.client.post(path, content=body, headers=headers)
        assert answer.status_code == 400 and "a correction is JSON with key, slide" in answer.text


def test_the_guards_hold(site):
    for origin in ("http://evil.example", "null", ""):
        assert site.post(origin=origin).status_code == 403
        assert site.post("/correction/undo", origin=origin).status_code == 403
    assert site.post(person="").status_code == site.get(person="").status_code == 401
    assert site.post("/correction/undo", person="").status_code == 401
    assert site.post(answer="1" * 70_000).status_code == 413
    assert site.client.get("/corrections/a", headers={"host": "evil.example"}).status_code == 403
    assert site.client.get("/correction", headers={"x-person": "Ann"}).status_code == 405
    assert not site.corrections.list_of_slide("a")


def test_hostile_names_are_names(site):
    name = NASTY.replace("/", "_")
    sent = site.post(slide=name, person=NASTY)
    assert sent.status_code == 200 and sent.json()["person"] == NASTY
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["x-content-type-options"] == "nosniff"
    assert site.get(name).json() == [sent.json()]
    assert site.get("..%2Fa").status_code == site.get("none").status_code == 404


def test_coordinates_may_be_whole_or_not():
    body = {"key": "k", "slide": "s", "x": 3, "y": 2.5, "answer": "?"}
    assert parse_sent(json.dumps(body).encode(), takes_back=False).center == (3.0, 2.5)
