"""The job that fills the paper's tables."""

import json
import shutil

import pytest
from PIL import Image

from data import folders
from data.dataset import load_dataset
from tests.tiny_tables import draw, make_config
from wsss_jax import chain_runner, chains, jobs, metrics, patch_confusions
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError, Preempted
from wsss_jax.jobs import tables as tables_job
from wsss_jax.report.tables_page import PAGE

PRODUCTS = ("tables.txt", "tables.md", "tables.csv", "tables.tex", "tables.json", PAGE)


def read_products(workdir):
    pictures = sorted((workdir / "pictures").iterdir())
    return {p.name: p.read_bytes() for p in (*(workdir / name for name in PRODUCTS), *pictures)}


def test_drawn_data_has_true_masks_everywhere(tmp_path):
    jobs.run(draw(), tmp_path)
    root = tmp_path / "data"
    dataset = load_dataset("", root)
    for split, count in (("train", 12), ("val", 4), ("test", 5)):
        assert folders.has_masks(root, split)
        assert len(list((root / split / "mask").iterdir())) == count
    patches = folders.list_labeled_patches(root, "train", dataset)
    assert len(folders.find_masks(patches, root / "train" / "mask")) == 12
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    jobs.run(draw(), tmp_path)  # nothing is drawn again
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == files
    other = draw()
    other.size = 64
    with pytest.raises(InputError, match="size"):
        jobs.run(other, tmp_path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tables")
    jobs.run(make_config("plain", "phase1", "gated"), workdir)
    return workdir


def test_tables_are_what_the_evaluations_scored(filled):
    document = json.loads((filled / "tables.json").read_text())
    assert document["seeds"] == [1]
    assert [table["table"] for table in document["tables"]] == ["I", "III", "IV"]
    *of_rows, most_frequent = document["tables"][1]["rows"]
    rows = {row["row"]: row["measured"] for row in of_rows}
    assert list(rows) == ["plain", "phase1", "gated"]
    for row, scores in rows.items():
        counts = patch_confusions.load(filled / "seed1" / row / "evaluate").counts
        expected = metrics.segmentation_scores(counts[-1].sum(axis=0))["miou"]
        assert scores["miou"] == pytest.approx(expected, rel=1e-12)
        majority = metrics.segmentation_scores(metrics.predict_majority(counts[-1].sum(axis=0)))
    assert most_frequent["measured"]["miou"] == pytest.approx(majority["miou"], rel=1e-12)
    assert most_frequent["row"] == "majority" and not most_frequent["seeds"]
    labels = {row["row"]: row["measured"] for row in document["tables"][2]["rows"]}
    for row, scores in labels.items():
        folder = filled / "seed1" / row / "evaluate"
        last = json.loads((folder / "scores.json").read_text())["rows"][-1]
        assert scores["accuracy"] == last["patches"]["patch_accuracy"]


def test_rows_share_what_is_equal(filled):
    def find(row, step):
        return (filled / "seed1" / row / step / "config.json").is_file()

    # In the folder of the first row of the tables.
    assert find("phase1", "draw") and not find("plain", "draw") and not find("gated", "draw")
    assert find("plain", "phase1") and find("phase1", "phase1") and not find("gated", "phase1")
    drawn = json.loads((filled / "seed1" / "gated" / "phase2" / "config.json").read_text())
    assert drawn["data"]["root"] == str(filled / "seed1" / "phase1" / "draw" / "data")


def test_the_page_holds_its_pictures(filled):
    page = (filled / PAGE).read_text()
    assert "Tiny &lt;tissue&gt;" in page and "<script" not in page
    names = {path.name for path in (filled / "pictures").iterdir()}
    assert names == {"examples.png", *(f"confusion_{r}.png" for r in ("plain", "phase1", "gated"))}
    # The examples, three confusion matrices, and the curves of each training once.
    assert page.count("data:image/png;base64,") == 1 + 3 + 3
    assert Image.open(filled / "pictures" / "examples.png").width > 5 * 160


def test_the_same_command_gives_the_same_bytes(filled):
    before = read_products(filled)
    jobs.run(make_config("plain", "phase1", "gated"), filled)
    assert read_products(filled) == before


def test_fewer_rows_find_what_is_done(filled, monkeypatch, capsys):
    """What all rows share lies in the folder of one that is not chosen any more."""
    done = []
    monkeypatch.setattr(chain_runner.jobs, "run", lambda config, folder: done.append(folder))
    for rows, tables in (
        (("gated",), ("I",)),
        (("plain",), ("III",)),
        (("gated", "plain"), ("III",)),
    ):
        config = make_config("plain", "phase1", "gated")
        config.rows, config.tables = rows, tables
        tables_job.run(config, filled)
        assert not done
        found = json.loads((filled / "tables.json").read_text())["tables"]
        assert {row["row"] for row in found[0]["rows"]} == {*rows, "majority"}
        pictures = {f"confusion_{row}.png" for row in rows}
        assert {path.name for path in (filled / "pictures").iterdir()} == {
            *pictures,
            "examples.png",
        }
        assert "in none of the tables" not in capsys.readouterr().out
    config.tables = ("I",)
    tables_job.run(config, filled)
    assert "in none of the tables I: plain\n" in capsys.readouterr().out


def test_tables_of_what_is_finished_are_there_before_the_end(filled, tmp_path, monkeypatch):
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    for row in ("phase1", "gated"):
        (tmp_path / "seed1" / row / "evaluate.finished.json").unlink()
    run = jobs.run

    def stop(config, folder):
        if folder.parent.name == "gated":
            raise Preempted("stopped by SIGTERM")
        run(config, folder)

    monkeypatch.setattr(chain_runner.jobs, "run", stop)
    config = make_config("plain", "phase1", "gated")
    with pytest.raises(Preempted):
        tables_job.run(config, tmp_path)
    document = json.loads((tmp_path / "tables.json").read_text())
    assert [row["row"] for row in document["tables"][0]["rows"]] == ["phase1", "majority"]
    assert document["missing"] == ["gated, seed 1: not finished yet"]
    assert "gated, seed 1: not finished yet" in (tmp_path / PAGE).read_text()
    monkeypatch.undo()
    tables_job.run(config, tmp_path)
    assert not json.loads((tmp_path / "tables.json").read_text())["missing"]


def test_a_begun_step_goes_on_with_its_own_configuration_only(tmp_path, monkeypatch):
    """What was killed in a folder is continued there, and anything else begins elsewhere."""

    def kill(config, folder):
        (folder / "config.json").parent.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(chain_runner.jobs, "run", kill)
    config = make_config("plain", "phase1", "gated")
    with pytest.raises(KeyboardInterrupt):
        tables_job.run(config, tmp_path)
    first = tmp_path / "seed1" / "phase1" / "draw"

    def find(train):
        for steps in config.jobs.values():
            steps.draw.train = train
        planned = chains.plan(config.steps, config.jobs, tmp_path, 1)
        (folder,) = {planned[row][0].folder for row in config.rows}
        return folder

    assert find(12) == first and find(13) != first


def test_moved_patches_cost_the_picture_alone(filled, capsys):
    config = make_config("plain", "phase1", "gated")
    data = filled / "seed1" / "phase1" / "draw" / "data"
    data.rename(data.with_name("elsewhere"))
    try:
        tables_job.run(config, filled)
    finally:
        data.with_name("elsewhere").rename(data)
    assert "no picture of test patches: " in capsys.readouterr().out
    assert not (filled / "pictures" / "examples.png").exists()
    tables_job.run(config, filled)
    assert (filled / "pictures" / "examples.png").is_file()


def test_weights_that_are_not_there_are_refused_at_once(tmp_path):
    config = make_config("plain", "phase1")
    config.jobs.plain.phase1.init = "nowhere.pth"
    with pytest.raises(InputError, match=r"jobs\.plain\.phase1\.init: no such .* nowhere.pth"):
        jobs.run(config, tmp_path)
    assert not (tmp_path / "seed1").exists()


def test_weights_of_finished_runs_may_go(filled, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(filled / "seed1" / "phase1" / "phase1", weights)
    config = make_config("plain")
    config.jobs.plain.phase1.init = str(weights)
    jobs.run(config, tmp_path / "tables")
    shutil.rmtree(weights)
    before = read_products(tmp_path / "tables")
    jobs.run(config, tmp_path / "tables")
    assert read_products(tmp_path / "tables") == before


def test_a_failed_row_is_named_and_costs_itself(filled, tmp_path):
    config = make_config("plain", "phase1")
    config.seeds, config.jobs.phase1.phase1.data.root = (0,), str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1 of 2 chains failed: seed 0, phase1, phase1: .*nowher"):
        jobs.run(config, tmp_path)
    rows = json.loads((tmp_path / "tables.json").read_text())["tables"][0]["rows"]
    assert [row["row"] for row in rows] == ["plain", "majority"]
    page = (tmp_path / PAGE).read_text()
    assert "Not in the tables" in page and "phase1, seed 0: phase1 failed" in page


def test_what_is_no_table_is_refused():
    for change, text in (
        ({"rows": ("plain", "plain")}, "rows is .* none twice"),
        ({"rows": ("other",)}, r"rows names other, but there is: plain"),
        ({"tables": ("II",)}, r"are in none of the tables II"),
        ({"tables": ("V",)}, "tables is"),
        ({"seeds": ()}, "seeds is"),
    ):
        config = make_config("plain")
        config.update(change)
        with pytest.raises(InputError, match=text):
            config_lib.validate(config)
    config = make_config("plain")
    del config.jobs.plain.draw
    with pytest.raises(InputError, match="reads runs/draw, but no step draw is before it"):
        config_lib.validate(config)


def test_a_chain_may_not_hold_tables():
    config = make_config("plain")
    config.jobs.plain.draw = make_config("plain")
    with pytest.raises(InputError, match="cannot be repeated"):
        config_lib.validate(config)
    assert chains.name_default("draw") == "runs/draw"
