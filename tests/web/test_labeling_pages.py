"""The pages of labeling, asked as a browser asks: who may do what, and what is stored."""

import html.parser
import json
import re

import numpy as np
import pytest
from starlette.testclient import TestClient

from configs import base_labels
from data import patch_files, synthetic
from wsss_jax import config as config_lib
from wsss_jax.labels import project
from wsss_jax.labels.desk import Desk
from wsss_jax.labels.store import ANNOTATOR, CHIEF
from wsss_jax.web import security
from wsss_jax.web.chief import Chief
from wsss_jax.web.labeling import Labeling, Pages
from wsss_jax.web.pages import make_app
from wsss_jax.web.surroundings import Surroundings

NASTY = '<img src=x onerror="alert(1)">'
CLASSES = ("tumor", "stroma", NASTY)
ORIGIN = "http://127.0.0.1:8765"
PEOPLE = ("Ann", f"Bob {NASTY}")


class Server:
    """A labeling of six patches by two people and a chief."""

    def __init__(self, root, **changes):
        self.config = base_labels.label()
        self.config.data.root, self.config.classes = str(root), CLASSES
        self.config.people = PEOPLE
        self.config.update(changes)
        config_lib.validate(self.config)
        self.found = project.load_project(self.config)
        self._opened = project.open_to_write(self.found)
        self.store = self._opened.__enter__()
        self.store.add_patches(list(self.found.patches))
        self.store.add_people(self.config.people, ANNOTATOR)
        self.store.add_people([self.config.chief], CHIEF)
        config = self.config
        settings = project.Settings(config.people, config.overlap, config.seed, 1.0, config.rule)
        self.desk: Desk = project.make_desk(self.found, self.store, settings, config.leave_out)
        hosts = frozenset(security.list_hosts("127.0.0.1"))
        pages = Pages(hosts, "label_8765", 30, config.chief)
        labeling = Labeling(self.desk, self.found.patches, Surroundings({}), pages)
        chief = Chief(
            labeling,
            self.config.rule,
            lambda: project.export(self.found, self.desk, config.rule),
            str(self.found.out),
        )
        self.app = make_app([*labeling.list_routes(), *chief.list_routes()], hosts)
        self.tokens = {person.name: person.token for person in self.store.list_people()}

    def close(self):
        self._opened.__exit__(None, None, None)

    def visit(self, name=None):
        """Opens a browser of a person, at the page that is theirs."""
        client = TestClient(self.app, base_url=ORIGIN, headers={"origin": ORIGIN})
        if name is not None:
            answer = client.get(f"/enter/{self.tokens[name]}")
            assert answer.status_code == 200, answer.text
        return client

    def get_number(self, name):
        return next(n for n, person in self.desk.people.items() if person.name == name)

    def count_events(self):
        return len(list(self.store.list_events()))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for number in range(6):
        image, _ = synthetic.draw_patch(rng, 32)
        name = f"p{number} <b>&.png" if number == 0 else f"p{number}.png"
        (folder / "patches").mkdir(parents=True, exist_ok=True)
        patch_files.write_image(folder / "patches" / name, image)
    return folder


@pytest.fixture
def server(root):
    server = Server(root)
    yield server
    server.close()


def make_event(key, kind, patch, value="", looked=0, person=0):
    fields = {"key": key, "kind": kind, "patch": patch, "value": value, "looked": looked}
    return {"person": person, **fields}  # 0 = whoever sends it


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


def test_annotators_do_not_reach_the_chief(server):
    ann = server.visit("Ann")
    for path in ("/chief", "/chief/patches"):
        assert ann.get(path).status_code == 403
    for path in ("/chief/settle", "/chief/export"):
        assert ann.post(path, data={"answer": "drop", "patch": "1", "key": "k"}).status_code == 403
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


def test_the_chief_settles_what_others_disagree_on(server):
    ann, bob, chief = server.visit("Ann"), server.visit(PEOPLE[1]), server.visit("chief")
    patches = sorted(server.desk.names)
    for client, labels in ((ann, ("100", "100", "?")), (bob, ("100", "010", "010"))):
        for patch, label in zip(patches, labels):
            event = make_event(str(patch), "done", patch, label)  # keys are each person's own
            assert client.post("/event", json=event).status_code == 200

    def list_shown(how, name=""):
        text = chief.get("/chief/patches", params={"how": how, "class": name}).text
        return [int(number) for number in re.findall(r'id="patch-(\d+)"', text)]

    assert list_shown("unanimous") == patches[:1]
    assert sorted(list_shown("disagreement")) == patches[1:3]
    assert list_shown("disagreement", "tumor") == patches[1:2]
    assert sorted(list_shown("waiting")) == patches[3:]
    form = {"key": "1", "patch": str(patches[1]), "answer": "settle", "class": ["0", "1"]}
    assert chief.post("/chief/settle", data=form, follow_redirects=False).status_code == 303
    form = {"key": "2", "patch": str(patches[2]), "answer": "drop"}
    chief.post("/chief/settle", data=form)
    assert list_shown("settled") == patches[1:2] and list_shown("cannot tell") == patches[2:3]
    assert "Exported to" in chief.post("/chief/export").text
    assert "Exported to" not in chief.get("/chief").text
    names = sorted(path.name for path in (server.found.out / "train").iterdir())
    stems = [server.desk.names[patch].split("/")[1][:-4] for patch in patches[:2]]
    assert names == sorted([f"{stems[0]}-[1 0 0].png", f"{stems[1]}-[1 1 0].png"])
    for key in ("3", "4"):
        chief.post("/chief/settle", data={"key": key, "patch": "0", "answer": "undo"})
    assert sorted(list_shown("disagreement")) == patches[1:3]
    for form in ({"patch": "x"}, {"patch": "1", "answer": "99", "key": "k"}, {}):
        assert chief.post("/chief/settle", data=form).status_code in (400, 404)
    for query in ({"how": "x"}, {"class": "x"}, {"page": "-1"}, {"page": "9" * 5000}):
        assert chief.get("/chief/patches", params=query).status_code in (400, 404)


def test_an_export_follows_the_labels_and_touches_nothing_else(server):
    ann, bob, chief = server.visit("Ann"), server.visit(PEOPLE[1]), server.visit("chief")
    patch = min(server.desk.names)
    for client in (ann, bob):
        client.post("/event", json=make_event(f"{client}", "done", patch, "100"))
    chief.post("/chief/export")
    out = server.found.out
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(files) == 4
    chief.post("/chief/export")
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    chief.post("/chief/settle", data={"key": "s", "patch": str(patch), "answer": "010"})
    chief.post("/chief/export")
    (only,) = (out / "train").iterdir()
    assert only.name.endswith("-[0 1 0].png")
    (out / "train" / "holiday.png").write_bytes(b"mine")
    assert "Not exported: " in chief.post("/chief/export").text
    assert (out / "train" / "holiday.png").read_bytes() == b"mine" and only.exists()


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


def test_a_chief_who_was_replaced_has_no_access_but_what_was_settled_holds(root):
    first = Server(root)
    patch = min(first.desk.names)
    before = first.visit("chief")
    before.post("/chief/settle", data={"key": "1", "patch": str(patch), "answer": "100"})
    first.close()
    second = Server(root, chief="boss")
    try:
        assert second.visit().get(f"/enter/{second.tokens['chief']}").status_code == 401
        boss = second.visit("boss")
        text = boss.get("/chief/patches?how=settled").text
        assert f'id="patch-{patch}"' in text
        boss.post("/chief/settle", data={"key": "1", "patch": str(patch), "answer": "010"})
        boss.post("/chief/export")
        (only,) = (second.found.out / "train").iterdir()
        assert only.name.endswith("-[0 1 0].png")
        for key in ("2", "3"):  # the second takes back what the former chief has settled
            boss.post("/chief/settle", data={"key": key, "patch": "0", "answer": "undo"})
        assert f'id="patch-{patch}"' not in boss.get("/chief/patches?how=settled").text
    finally:
        second.close()


def test_enter_in_a_check_box_settles_what_is_checked(server):
    """A browser then takes the first button of the form."""
    chief = server.visit("chief")
    text = chief.get("/chief/patches?how=waiting").text
    for form in re.findall(r'<form method="post" action="/chief/settle">.*?</form>', text, re.S):
        first = re.search(r'<button name="answer" value="(\w+)"', form)
        assert first[1] == "settle"


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
