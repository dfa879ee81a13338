"""What a finished map says of the patches that its network learned from."""

import json
import shutil

import pytest

from tests.conftest import SIZE
from tests.slides.slide_runs import read_json
from wsss_jax.errors import InputError
from wsss_jax.labels.correction_folder import Field, find_origin
from wsss_jax.labels.corrections import Asked, open_corrections
from wsss_jax.slides.reading.catalog import SlideFile


def test_the_map_of_a_trained_run_can_be_corrected(finished, slide, tmp_path):
    summary = read_json(finished / slide.stem / "slide.json")
    origin = find_origin(finished, summary)
    assert origin.field == Field(SIZE, 1.0, "area")
    file = SlideFile(slide, slide.stem, None)
    with open_corrections(tmp_path / "corrections", origin) as corrections:
        found = corrections.take(Asked("Ann", "k", 1), file, (300, 250), "1000")
        assert (found.x, found.y, found.size) == (300, 250, 2 * SIZE)
        assert corrections.find_split(file) == "train"
    assert json.loads((tmp_path / "corrections" / "dataset.json").read_text())["mpp"] == 1.0


def test_splits_are_those_of_the_data_set_of_the_run(finished, slide, tissue_dir, tmp_path):
    """The run's data set is found by its folder; where that has moved, nothing is known."""
    summary = read_json(finished / slide.stem / "slide.json")
    assert not find_origin(finished, summary).training.splits
    copy = tmp_path / "maps"
    copy.mkdir()
    for name in ("config.json", "dataset.json"):
        shutil.copy(finished / name, copy / name)
    config = read_json(copy / "config.json")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "dataset.json"):
        shutil.copy(f"{config['phase2']}/{name}", run / name)
    trained = read_json(run / "config.json")
    trained["data"]["root"] = str(tmp_path / "data")
    (run / "config.json").write_text(json.dumps(trained))
    (copy / "config.json").write_text(json.dumps({**config, "phase2": str(run)}))
    patches = tmp_path / "data" / "test" / "img"
    patches.mkdir(parents=True)
    (patches / f"{slide.stem}_x00000_y00000.png").touch()
    assert find_origin(copy, summary).training.splits == {slide.stem: "test"}
    shutil.rmtree(run)
    assert not find_origin(copy, summary).training.splits


def test_maps_of_earlier_versions_say_it_too(finished, slide, tmp_path):
    summary = read_json(finished / slide.stem / "slide.json")
    earlier = {**summary, "networks": {}}
    earlier["settings"]["map"].pop("resampling")
    assert find_origin(finished, earlier).field == Field(SIZE, 1.0, "triangle")
    with pytest.raises(InputError, match=r"config\.maps: .* holds no run"):
        find_origin(tmp_path, summary)
