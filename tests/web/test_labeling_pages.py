"""The pages of labeling, asked as a browser asks: who may do what, and what is stored."""

import html.parser
import json
import re

import numpy as np
import pytest

from data import patch_files
from tests.web.labeling_in_process import CLASSES, NASTY, PEOPLE, Server, make_event
from wsss_jax.web import security


def test_answers_are_stored_and_followed_by_the_next_patch(server):
    ann = server.visit("Ann")
    first, *rest = [each["patch"] for each in ann.get("/next").json()["patches"]]
    assert len(rest) == 5
    answer = ann.post("/event", json=make_event("a", "set", first, "1=1")).json()
    assert answer["draft"] == {"1": 1} and answer["undone"] is None
    answer = ann.post("/event", json=make_event("b", "done", first, "010", 1500)).json()
    assert answer["progress"] == {"done": 1, "total": 6, "seconds": 1.5}
    assert [each["patch"] for each in ann.get("/next").json()["patches"]] == rest
    after = ann.get(f"/next?after={rest[1]}").json()["patches"]
    assert [each["patch"] for each in after] == rest[2:]
    for _ in range(2):  # sent again, since its answer was lost
        answer = ann.post("/event", json=make_event("c", "undo", 0)).json()
        undone = answer["undone"]
        assert (undone["kind"], undone["patch"], answer["draft"]) == ("done", first, {"1": 1})
        assert undone["picture"].startswith(f"/patch/{first}?v=")
    shown = ann.get("/next").json()["patches"][0]
    assert (shown["patch"], shown["draft"]) == (first, {"1": 1})


def test_pictures_are_those_of_the_files(server, root):
    ann = server.visit("Ann")
    files = {path.read_bytes() for path in (root / "patches").iterdir()}
    numbers = [each["patch"] for each in ann.get("/next").json()["patches"]]
    assert {ann.get(f"/patch/{number}").content for number in numbers} == files
    assert ann.get("/patch/999").status_code == 404
    assert ann.get(f"/surroundings/{numbers[0]}/4").status_code == 404  # of no slide


def test_a_stranger_sees_nothing(server):
    stranger = server.visit()
    numbers = list(server.desk.names)
    for path in ("/", "/next", f"/patch/{numbers[0]}", "/chief", "/chief/patches"):
        assert stranger.get(path).status_code == 401, path
    for path in ("/event", "/chief/settle", "/chief/export"):
        assert stranger.post(path, json=make_event("k", "undo", 0)).status_code == 401, path
    assert stranger.get("/enter/wrong").status_code == 401
    assert stranger.get("/", headers={"cookie": b"label_8765=\xe9"}).status_code == 401
    assert not server.count_events() and not server.found.out.exists()


def test_someone_who_labels_no_more_has_no_access(root):
    first = Server(root)
    ann = first.visit("Ann")
    first.close()
    second = Server(root, people=("Cleo",))
    try:
        assert second.tokens["Ann"] == first.tokens["Ann"]
        stranger = second.visit()
        assert stranger.get(f"/enter/{second.tokens['Ann']}").status_code == 401
        assert ann.cookies.get("label_8765") == second.tokens["Ann"]
    finally:
        second.close()


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "", "https://[bad"]
)
def test_pages_of_other_origins_cannot_answer(server, origin):
    ann = server.visit("Ann")
    patch = ann.get("/next").json()["patches"][0]["patch"]
    event = make_event("k", "done", patch, "100")
    assert ann.post("/event", json=event, headers={"origin": origin}).status_code == 403
    chief = server.visit("chief")
    form = {"patch": str(patch), "key": "k", "answer": "100"}
    assert chief.post("/chief/settle", data=form, headers={"origin": origin}).status_code == 403
    assert chief.post("/chief/export", headers={"origin": origin}).status_code == 403
    assert not server.count_events() and not server.found.out.exists()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.com", ""])
def test_other_names_of_the_server_read_nothing(server, host):
    """A page whose name was made to mean this machine (DNS rebinding) has its own origin."""
    ann = server.visit("Ann")
    for path in ("/", "/next", "/static/label.js"):
        answer = ann.get(path, headers={"host": host, "origin": f"http://{host}"})
        assert answer.status_code == 403 and "tumor" not in answer.text


def test_the_cookie_is_for_this_page_alone(server):
    answer = server.visit().get(f"/enter/{server.tokens['Ann']}")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    # No redirection: opened from another site, it would go without the cookie.
    assert answer.status_code == 200 and 'content="0; url=/"' in answer.text
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../labeling.py",
        "/static/%2e%2e%2flabeling.py",
        "/static/..%2f..%2fmain.py",
        "/static//etc/passwd",
        "/patch/..%2f..%2flabels.sqlite",
        "/patch/1%00",
        "/patch/-1",
        "/patch/" + "9" * 5000,
        "/patch/labels.sqlite",
        "/labels.sqlite",
        "/surroundings/1/..",
    ],
)
def test_no_path_reaches_a_file(server, path):
    assert server.visit("chief").get(path).status_code in (400, 404)


class _Scripts(html.parser.HTMLParser):
    """Finds what the policy of the pages forbids, and elements that nobody wrote."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        names = dict(attributes)
        if tag in ("b", "style") or (tag == "script" and "src" not in names):
            self.found.append(tag)
        self.found += [name for name in names if name.startswith("on") or name == "style"]


def test_pages_say_what_may_run_and_escape_every_name(server):
    ann, chief = server.visit("Ann"), server.visit("chief")
    patch = next(n for n, name in server.desk.names.items() if "<b>" in name)
    ann.post("/event", json=make_event("k", "done", patch, "101"))
    for client, path in ((ann, "/"), (chief, "/chief"), (chief, "/chief/patches?how=waiting")):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "no-store" in answer.headers["cache-control"]
        parser = _Scripts()
        parser.feed(answer.text)
        assert not parser.found
        assert NASTY not in answer.text
    assert "&lt;b&gt;&amp;.png" in answer.text
    # What scripts read is JSON in an attribute.
    state = re.search(r'data-state="([^"]*)"', ann.get("/").text)[1]
    assert json.loads(html.unescape(state))["classes"] == list(CLASSES)


def test_bodies_have_a_size(server):
    ann = server.visit("Ann")
    event = make_event("k", "done", 1, "1" * security.LARGEST_BODY)
    assert ann.post("/event", json=event).status_code == 413
    chunks = (b"x" * 1024 for _ in range(1000))  # without saying how many there are
    assert ann.post("/event", content=chunks).status_code == 413
    assert not server.count_events()


@pytest.mark.parametrize(
    "event",
    [
        make_event("k", "done", 10**6, "100"),
        make_event("k", "done", 1, "10"),
        make_event("", "undo", 0),
        make_event("\ud800", "undo", 0),
        {"key": "k"},
        [],
    ],
)
def test_an_impossible_answer_is_refused_in_one_line(server, event):
    answer = server.visit("Ann").post("/event", content=json.dumps(event))
    assert answer.status_code == 400 and answer.text and "\n" not in answer.text
    assert not server.count_events()


def test_nothing_is_written_but_labels_and_exports(server, root):
    before = {path for path in root.rglob("*") if "labels.sqlite" not in path.name}
    ann = server.visit("Ann")
    patch = ann.get("/next").json()["patches"][0]["patch"]
    ann.post("/event", json=make_event("k", "done", patch, "100"))
    server.visit("chief").get("/chief")
    assert {path for path in root.rglob("*") if "labels.sqlite" not in path.name} == before
    assert (root / "labels.sqlite").stat().st_mode & 0o077 == 0  # it holds the tokens
    assert server.visit("chief").post("/chief/export").status_code == 200
    new = {path for path in root.rglob("*") if "labels.sqlite" not in path.name} - before
    assert all(path.is_relative_to(root / "labeled") for path in new)


def test_a_page_of_one_person_does_not_answer_for_another(server):
    """Two people open their addresses in one browser: the last one's cookie is sent by both."""
    browser = server.visit("Ann")
    patch = browser.get("/next").json()["patches"][0]["patch"]
    browser.get(f"/enter/{server.tokens[PEOPLE[1]]}")
    ann, bob = (server.get_number(name) for name in PEOPLE)
    event = make_event("k", "done", patch, "100", person=ann)
    assert browser.post("/event", json=event).status_code == 401
    assert browser.get(f"/next?person={ann}").status_code == 401
    assert not server.count_events()
    event["person"] = bob
    assert browser.post("/event", json=event).status_code == 200


def test_a_picture_has_another_address_when_its_file_changes(server, root):
    """Browsers keep pictures; another folder may be served at the same port tomorrow."""
    ann = server.visit("Ann")
    shown = ann.get("/next").json()["patches"][0]
    path = root / server.desk.names[shown["patch"]]
    assert ann.get(shown["picture"]).content == path.read_bytes()
    patch_files.write_image(path, np.zeros((32, 32, 3), np.uint8))
    again = ann.get("/next").json()["patches"][0]
    assert again["patch"] == shown["patch"] and again["picture"] != shown["picture"]


def test_a_picture_that_went_away_is_no_server_error(server, root):
    ann = server.visit("Ann")
    patch = ann.get("/next").json()["patches"][0]["patch"]
    (root / server.desk.names[patch]).unlink()
    assert ann.get(f"/patch/{patch}").status_code == 404
    assert ann.post("/event", json=make_event("k", "done", patch, "?")).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x.org", False)],
)
def test_what_is_loopback(host, loopback):
    assert security.is_loopback(host) == loopback
    hosts = security.list_hosts(host, ["Proxy.example"])
    assert "proxy.example" in hosts and ("localhost" in hosts or not loopback)
