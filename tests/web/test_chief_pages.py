"""The pages of the chief of a labeling: what is settled and exported, and who has access."""

import re

from tests.web.labeling_in_process import PEOPLE, Server, make_event


def test_annotators_do_not_reach_the_chief(server):
    ann = server.visit("Ann")
    for path in ("/chief", "/chief/patches"):
        assert ann.get(path).status_code == 403
    for path in ("/chief/settle", "/chief/export"):
        assert ann.post(path, data={"answer": "drop", "patch": "1", "key": "k"}).status_code == 403
    assert not server.count_events() and not server.found.out.exists()


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
