"""The annotation study: times and consensus of labels and of drawings."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import base_labels
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.labels.replay import DONE, SET, UNDO, Event
from wsss_jax.labels.store import ANNOTATOR, CHIEF, open_store


def make_labels(path):
    """Two people; Ann takes 3 and 60 + 5 seconds, Bob 4; they agree on 3 of 4 labels."""
    with open_store(path, ("tumor", "stroma")) as store:
        store.add_people(["Ann", "Bob"], ANNOTATOR)
        store.add_people(["Eve"], CHIEF)
        store.add_patches(["a", "b", "c"])
        ann, bob, eve = (person.number for person in store.list_people())
        undone = [("3", Event(DONE, 2, "11", 60_000)), ("4", Event(UNDO, 0))]
        events = [("1", Event(SET, 1, "0=1")), ("2", Event(DONE, 1, "10", 3000)), *undone]
        store.add_events(ann, [*events, ("5", Event(DONE, 2, "01", 5000))])
        store.add_events(bob, [("1", Event(DONE, 1, "10", 4000)), ("2", Event(DONE, 2, "00", 0))])
        store.add_events(eve, [("1", Event(DONE, 3, "11", 9000))])


def make_drawings(folder):
    masks = {"Ann": {"a": [[0, 0], [1, 1]], "b": [[2, 2]]}, "Bob": {"a": [[0, 1], [1, 1]]}}
    for person, of_person in masks.items():
        (folder / person).mkdir(parents=True)
        for name, values in of_person.items():
            Image.fromarray(np.array(values, np.uint8)).save(folder / person / f"{name}.png")
    (folder / "times.csv").write_text(
        "person,patch,seconds\nAnn,a,120\nAnn,b,60\nBob,a,30.5\n", encoding="utf-8"
    )


def make_config(tmp_path):
    config = base_labels.study()
    config.labels, config.drawings = str(tmp_path / "l.sqlite"), str(tmp_path / "drawings")
    return config


def test_the_table_of_the_paper(tmp_path, capsys):
    make_labels(tmp_path / "l.sqlite")
    make_drawings(tmp_path / "drawings")
    jobs.run(make_config(tmp_path), tmp_path / "study")
    document = json.loads((tmp_path / "study" / "study.json").read_text())
    labels, drawings = document["patch labels"], document["drawings"]
    assert labels["minutes_per_100_patches"] == {
        "Ann": pytest.approx(100 * (3 + 65) / 2 / 60),  # what was taken back took time, too
        "Bob": pytest.approx(100 * 4 / 60),
    }
    assert (labels["patches"], labels["consensus"]) == (2, 3 / 4)
    assert labels["timed_patches"] == {"Ann": 2, "Bob": 1}
    assert drawings["minutes_per_100_patches"]["Ann"] == pytest.approx(150)
    assert drawings["minutes_per_100_patches"]["Bob"] == pytest.approx(100 * 30.5 / 60)
    assert (drawings["patches"], drawings["consensus"]) == (1, 3 / 4)
    text = (tmp_path / "study" / "study.txt").read_text()
    assert text in capsys.readouterr().out
    assert re.search(r"^Ann +56\.7 +150\.0$", text, re.M)
    assert re.search(r"^consensus +75\.00% +75\.00%$", text, re.M)
    assert Image.open(tmp_path / "study" / "study.png").width > 300
    before = {path: path.read_bytes() for path in (tmp_path / "study").iterdir()}
    jobs.run(make_config(tmp_path), tmp_path / "study")
    assert {path: path.read_bytes() for path in (tmp_path / "study").iterdir()} == before


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Ann,a,soon", "csv:5: 'soon' are no seconds"),
        ("Ann,c,-1", "csv:5: -1 seconds are impossible"),
        ("Ann,c,inf", "impossible"),
        ("Zoe,a,3", "no folder of Zoe"),
        ("Ann,a,3", "Ann has a twice"),
        ("Ann,a", "another number of cells"),
    ],
)
def test_a_time_that_is_none_is_named(tmp_path, line, text):
    make_labels(tmp_path / "l.sqlite")
    make_drawings(tmp_path / "drawings")
    with (tmp_path / "drawings" / "times.csv").open("a") as table:
        table.write(f"{line}\n")
    with pytest.raises(InputError, match=text):
        jobs.run(make_config(tmp_path), tmp_path / "study")
    assert not (tmp_path / "study" / "study.txt").exists()


def test_what_is_not_there_is_named(tmp_path):
    config = base_labels.study()
    with pytest.raises(InputError, match=r"--config\.labels"):
        jobs.run(config, tmp_path / "study")
    config.drawings = str(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder of drawings"):
        jobs.run(config, tmp_path / "study")
    (tmp_path / "none" / "Ann").mkdir(parents=True)
    with pytest.raises(InputError, match="no masks"):
        jobs.run(config, tmp_path / "study")
    make_drawings(tmp_path / "drawings")
    other = Image.fromarray(np.zeros((3, 3), np.uint8))
    other.save(tmp_path / "drawings" / "Bob" / "a.png")
    config.drawings = str(tmp_path / "drawings")
    with pytest.raises(InputError, match=r"is 3x3 pixels, .* is 2x2 pixels"):
        jobs.run(config, tmp_path / "study")
