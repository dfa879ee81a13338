"""What the jobs of labeling read: patches, labels that were there, a run that ranks; bad input."""

import csv
import io
import socket

import numpy as np
import pytest
from PIL import Image

from configs import base_labels
from data import patch_files, synthetic
from data.dataset import load_dataset, parse_label
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import Busy, InputError
from wsss_jax.jobs import label as label_job
from wsss_jax.labels import priority, project
from wsss_jax.labels.existing import read_labels
from wsss_jax.labels.patches import Place, find_patches, read_slide_paths
from wsss_jax.labels.replay import DONE, Event
from wsss_jax.labels.store import ANNOTATOR, open_store
from wsss_jax.sampling import tables
from wsss_jax.sampling.tables import COLUMNS, PatchRow, SlideRow
from wsss_jax.web import server
from wsss_jax.web.surroundings import Surroundings


def draw(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        patch_files.write_image(folder / name, synthetic.draw_patch(rng, 32)[0])


def make_config(root, classes=("tumor", "stroma"), **changes):
    config = base_labels.label()
    config.data.root, config.classes = str(root), classes
    config.update(changes)
    return config


def write_table(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_patches(root, *rows):
    """Writes the table of `configs/sample.py`: patch, split, left, kept."""
    tables.write_patches(
        root / tables.PATCHES,
        [
            PatchRow(
                patch, "=s", "p", split, left, 20, 448.5, 1.0, kept, "", dict.fromkeys(COLUMNS, 0.0)
            )
            for patch, split, left, kept in rows
        ],
    )


def test_patches_of_a_table_are_those_it_keeps(tmp_path):
    draw(tmp_path / "patches" / "s", "a.png", "b.png", "c.png")
    write_patches(
        tmp_path,
        ("patches/s/a.png", "train", 10, True),
        ("patches/s/b.png", "val", 500, True),
        ("patches/s/c.png", "train", 900, False),
    )
    tables.write_slides(
        tmp_path / tables.SLIDES,
        [SlideRow("=s", "/slides/s.svs", "p", "train", 0.5, 0.5, 3, 2, "", "")],
    )
    found = find_patches(tmp_path)
    assert list(found) == ["patches/s/a.png", "patches/s/b.png"]
    assert found["patches/s/a.png"].place == Place("=s", 10, 20, 448.5)
    assert found["patches/s/b.png"].split == "val"
    # At the resolution of the patches slides are segmented later.
    assert project.load_project(make_config(tmp_path)).dataset.mpp == 1.0
    assert str(read_slide_paths(tmp_path)["=s"]) == "/slides/s.svs"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (("patches/s/none.png", "train", 0, True), "no such file"),
        (("../a.png", "train", 0, True), "is not in"),
        (("/etc/passwd", "train", 0, True), "is not in"),
        (("patches/s/a.png", "other", 0, True), "split 'other'"),
        (("patches/s/a.png", "train", "x", True), "csv:2: left is 'x'"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, row, text):
    draw(tmp_path / "patches" / "s", "a.png")
    write_patches(tmp_path, row)
    with pytest.raises(InputError, match=text):
        find_patches(tmp_path)


def test_pictures_and_data_sets_are_found_without_a_table(tmp_path):
    draw(tmp_path / "pile" / "patches" / "deep", "a.png")
    draw(tmp_path / "pile" / "patches", "b.png")
    assert list(find_patches(tmp_path / "pile")) == ["patches/b.png", "patches/deep/a.png"]
    draw(tmp_path / "pile" / "patches", "A.png")
    with pytest.raises(InputError, match="same file name"):
        find_patches(tmp_path / "pile")
    draw(tmp_path / "set" / "training", "p-[1 0].png")
    assert list(find_patches(tmp_path / "set")) == ["training/p-[1 0].png"]
    (tmp_path / "empty" / "patches").mkdir(parents=True)
    with pytest.raises(InputError, match="no patches to label"):
        find_patches(tmp_path / "empty")


def test_a_description_is_written_once_and_kept(tmp_path):
    draw(tmp_path / "patches", "a.png")
    with pytest.raises(InputError, match="name the classes"):
        project.load_project(make_config(tmp_path, ()))
    for classes in (("tumor", "tumor"), ("x" * 200, "y"), ("alone",)):
        with pytest.raises(InputError, match=r"config\.classes is "):
            project.load_project(make_config(tmp_path, classes))
        assert not (tmp_path / "dataset.json").exists()
    found = project.load_project(make_config(tmp_path))
    assert found.dataset == load_dataset("", tmp_path) and len(found.dataset.palette) == 3
    assert project.load_project(make_config(tmp_path, ())).dataset == found.dataset
    with pytest.raises(InputError, match=r"has \('tumor', 'stroma'\)"):
        project.load_project(make_config(tmp_path, ("other",)))
    with pytest.raises(InputError, match=r"--config\.data\.root"):
        project.load_project(make_config(""))
    with pytest.raises(InputError, match="no such folder"):
        project.load_project(make_config(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"people": ()}, "people is empty"),
        ({"people": ("a", "a")}, "'a' is there twice"),
        ({"people": ("chief",)}, "'chief' is there twice"),
        ({"order": "uncertain"}, "name the run"),
        ({"order": "best"}, "order is"),
        ({"port": 70000}, "port is"),
        ({"overlap": 1.5}, "overlap is"),
        ({"rule": "any"}, "rule is"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        config_lib.validate(make_config(tmp_path, **changes))


def test_a_taken_port_and_database_are_named(tmp_path):
    draw(tmp_path / "patches", "a.png")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: .*--config\.port"):
            jobs.run(make_config(tmp_path, port=port), tmp_path / "run")
    with pytest.raises(InputError, match=r"192\.0\.2\.1:0: .*--config\.host"):
        server.bind("192.0.2.1", 0)
    found = project.load_project(make_config(tmp_path))
    with project.open_to_write(found), pytest.raises(Busy):
        jobs.run(make_config(tmp_path, port=0), tmp_path / "run")


def test_labels_that_were_there_count_as_one_person(tmp_path):
    draw(tmp_path / "training", "p-[1 0].png", "q-[0 1].png")
    found = project.load_project(make_config(tmp_path))
    labels = read_labels("names", found.patches, found.dataset)
    assert labels == {"training/p-[1 0].png": "10", "training/q-[0 1].png": "01"}
    table = tmp_path / "given.csv"
    write_table(table, ("patch", "tumor", "stroma"), ("p-[1 0].png", 1, 1), ("q-[0 1].png", "", ""))
    given = read_labels(str(table), found.patches, found.dataset)
    assert given == {"training/p-[1 0].png": "11"}  # an empty cell is no answer
    config = make_config(tmp_path)
    with project.open_to_write(found) as store:
        store.add_patches(list(found.patches))
        store.add_people(["me"], ANNOTATOR)
        for each in (labels, labels, given, labels):  # the same once, others again
            label_job.take_in(store, "clinic", each)
        assert len(list(store.list_events())) == 2 + (1 + 1) + 2  # one is given up, and comes back
        (me,) = (p for p in store.list_people() if p.name == "me")
        patches = store.list_patches()
        events = [
            ("1", Event(DONE, patches["training/p-[1 0].png"], "10")),
            ("2", Event(DONE, patches["training/q-[0 1].png"], "10")),
        ]
        store.add_events(me.number, events)
        settings = project.Settings(("me",), 1.0, 0, 1.0, "unanimous")
        counts = project.export(found, project.make_desk(found, store, settings, ()), config.rule)
    assert counts == {"unanimous": 1, "disagreement": 1}
    (only,) = (tmp_path / "labeled" / "train").iterdir()
    assert only.name == "p-[1 0].png"  # the earlier label is not in the name twice
    assert parse_label(only.name, found.dataset) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([("name", "label"), ("p", "10")], "no column 'patch'"),
        ([("patch", "tumor"), ("p-[1 0].png", "1")], "none for the class stroma"),
        ([("patch", "label"), ("zz", "10")], "there is no patch zz"),
        ([("patch", "label"), ("p-[1 0].png", "100")], "is not 2 of 0 and 1"),
        ([("patch", "label"), ("p-[1 0].png", "10"), ("p-[1 0].png", "01")], "another label above"),
    ],
)
def test_a_bad_table_of_labels_is_named(tmp_path, rows, text):
    draw(tmp_path / "training", "p-[1 0].png")
    found = project.load_project(make_config(tmp_path))
    write_table(tmp_path / "given.csv", *rows)
    with pytest.raises(InputError, match=text):
        read_labels(str(tmp_path / "given.csv"), found.patches, found.dataset)
    with pytest.raises(InputError, match="no such file"):
        read_labels(str(tmp_path / "none.csv"), found.patches, found.dataset)
    (tmp_path / "given.csv").write_bytes(b"patch,label\n\xff\xfe,10\n")
    with pytest.raises(InputError, match=r"given\.csv:2: there is no patch"):
        read_labels(str(tmp_path / "given.csv"), found.patches, found.dataset)


def test_ranks_by_hand():
    p = np.array([[0.5, 0.5], [0.9, 0.1], [0.99, 0.6]])
    uncertain = priority.rank_uncertain(p)
    assert uncertain[0] == pytest.approx(1) and uncertain.argmin() == 1
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert uncertain[1] == pytest.approx(entropy)
    rare = priority.rank_rare(np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.9]]))
    assert rare[2] == pytest.approx(0.9 / (2.9 / 3) + 0.9 / 0.3) and rare[0] == rare[1]


def test_a_run_ranks_patches(runs_dir, tmp_path):
    draw(tmp_path, *(f"{number}.png" for number in range(5)))
    paths = {path.name: path for path in sorted(tmp_path.glob("*.png"))}
    classes = load_dataset("", runs_dir / "phase1").classes
    for order in ("uncertain", "rare"):
        ranks = priority.rank(order, str(runs_dir / "phase1"), classes, paths)
        assert list(ranks) == list(paths) and len(set(ranks.values())) > 1
        some = dict(list(paths.items())[:1])
        if order == "uncertain":  # a patch's rank does not depend on others
            alone = priority.rank(order, str(runs_dir / "phase1"), classes, some)
            assert alone["0.png"] == pytest.approx(ranks["0.png"], rel=1e-5)
    with pytest.raises(InputError, match="knows the classes"):
        priority.rank("rare", str(runs_dir / "phase1"), ("a", "b"), paths)


def test_an_export_needs_a_database_of_the_same_classes(tmp_path):
    draw(tmp_path / "patches", "a.png")
    config = base_labels.export_labels()
    config.data.root, config.classes = str(tmp_path), ("tumor", "stroma")
    with pytest.raises(InputError, match="no such label database"):
        jobs.run(config, tmp_path / "run")
    with open_store(tmp_path / "labels.sqlite", ("other",)):
        pass
    with pytest.raises(InputError, match="nobody has labeled yet"):
        jobs.run(config, tmp_path / "run")


def test_an_export_is_dealt_as_the_pages_were_and_spares_the_patches(tmp_path):
    draw(tmp_path / "train", *(f"p{number}.png" for number in range(8)))
    found = project.load_project(make_config(tmp_path))
    settings = project.Settings(("Ann", "Bob"), 0.3, 5, 1.0, "majority")
    with project.open_to_write(found) as store:
        store.add_patches(list(found.patches))
        store.add_people(["Ann", "Bob", "trial"], ANNOTATOR)
        store.save_settings(settings._asdict())
        desk = project.make_desk(found, store, settings, ())
        for person in desk.annotators:
            for patch in desk.list_next(person.number, 99):
                desk.take(person, f"key{patch}", Event(DONE, patch, "10"))
        (trial,) = (p.number for p in store.list_people() if p.name == "trial")
        first = min(desk.names)
        store.add_events(trial, [("1", Event(DONE, first, "01"))])
    config = base_labels.export_labels()
    config.data.root, config.leave_out = str(tmp_path), ("trial",)
    config.out = str(tmp_path)
    with pytest.raises(InputError, match="is the folder of the patches themselves"):
        jobs.run(config, tmp_path / "run")
    assert len(list((tmp_path / "train").iterdir())) == 8
    config.out = ""
    jobs.run(config, tmp_path / "run")
    exported = [path.name for path in (tmp_path / "labeled" / "train").iterdir()]
    assert sorted(exported) == [f"p{number}-[1 0].png" for number in range(8)]
    config.leave_out = ()
    (tmp_path / "labeled" / "train" / ".unfinished.x").mkdir()  # of a killed export
    jobs.run(config, tmp_path / "run")
    assert len(list((tmp_path / "labeled" / "train").iterdir())) == 7
    config.leave_out = ("nobody",)
    with pytest.raises(InputError, match="nobody called nobody"):
        jobs.run(config, tmp_path / "run")


def test_odd_patches_are_named_before_work_begins(tmp_path):
    draw(tmp_path / "patches", "a.png", "b.png")
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(tmp_path / "patches" / "wide.png")
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "patches" / "deep.png")
    (tmp_path / "patches" / "broken.png").write_bytes(b"no picture")
    odd = project.list_odd_patches(find_patches(tmp_path))
    assert odd == ["patches/broken.png", "patches/deep.png", "patches/wide.png"]


def test_a_slide_that_went_away_is_named(tmp_path):
    surroundings = Surroundings({"s": tmp_path / "s.svs"})
    with pytest.raises(InputError, match="not there any more"):
        surroundings.draw(Place("s", 0, 0, 64), 2)
    with pytest.raises(InputError, match="no slide t"):
        surroundings.draw(Place("t", 0, 0, 64), 2)


def test_a_patch_is_in_the_middle_of_its_surroundings(tmp_path):
    pixels = np.full((600, 800, 3), 230, np.uint8)
    pixels[200:300, 300:400] = (200, 40, 120)  # the patch
    Image.fromarray(pixels).save(tmp_path / "s.png")
    surroundings = Surroundings({"s": tmp_path / "s.png"})
    for field in (2, 4):
        content = surroundings.draw(Place("s", 300, 200, 100), field)
        picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        pink = np.abs(picture - (200, 40, 120)).sum(axis=-1) < 60
        rows, columns = np.nonzero(pink)
        size = len(picture)
        assert rows.mean() == pytest.approx(size / 2, abs=2)
        assert columns.mean() == pytest.approx(size / 2, abs=2)
        assert np.ptp(rows) == pytest.approx(size / field, abs=4)
    outside = surroundings.draw(Place("s", 0, 0, 100), 4)
    corner = np.asarray(Image.open(io.BytesIO(outside)))[:20, :20]
    assert corner.min() > 250
