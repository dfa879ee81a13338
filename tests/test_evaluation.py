import csv
import json

import numpy as np
import pytest
from PIL import Image

from configs import base
from tests.conftest import COUNTS, SIZE
from wsss_jax import jobs
from wsss_jax.errors import InputError


def test_evaluation_writes_table_and_pictures(runs_dir):
    folder = runs_dir / "evaluate"
    scores = json.loads((folder / "scores.json").read_text())
    names = ["majority class", "phase 1", "phase 2", "phase 2 + gate"]
    assert [row["name"] for row in scores["rows"]] == names
    assert scores["meta"]["patches"] == COUNTS["test"]
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["mIoU"]) == scores["rows"][2]["miou"]
    for name in ("confusion", "worst", "best", "examples"):
        assert Image.open(folder / f"{name}.png").width > 4 * SIZE


@pytest.mark.parametrize(
    ("phase1", "phase2", "rows"),
    [(True, False, ["phase 1"]), (False, True, ["phase 2"])],
)
def test_one_phase_alone(runs_dir, tmp_path, phase1, phase2, rows):
    config = base.evaluate(
        str(runs_dir / "phase1") if phase1 else "", str(runs_dir / "phase2") if phase2 else ""
    )
    config.data.workers, config.batch_size, config.sheet_patches = 0, 4, 0
    jobs.evaluate(config, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["name"] for row in scores["rows"]] == ["majority class", *rows]
    whole = json.loads((runs_dir / "evaluate" / "scores.json").read_text())
    same = next(row for row in whole["rows"] if row["name"] == rows[0])
    np.testing.assert_equal(scores["rows"][1], same)


def test_another_data_set_is_refused(runs_dir, tmp_path):
    config = base.evaluate(str(runs_dir / "phase1"), "")
    config.data.dataset = "bcss_wsss"
    with pytest.raises(InputError, match="the earlier run learned ''"):
        jobs.evaluate(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
