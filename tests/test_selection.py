"""Which checkpoint a run selects, and what it says about it."""

import numpy as np
import pytest

from tests.conftest import tiny_phase1
from wsss_jax.checkpoints import Checkpoints, load_variables
from wsss_jax.state import State
from wsss_jax.training import history

SCORES = (0.10, 0.77, 0.20, 0.60, 0.62, 0.61, 0.30)  # one lucky epoch, three good ones


def test_selection(tissue_dir, tmp_path):
    config, epochs = tiny_phase1(tissue_dir), []
    for number, score in enumerate(SCORES):
        epochs.append({"epoch": number, "miou": score})
        epochs[-1]["smoothed_miou"] = history.smooth([record["miou"] for record in epochs])
    for select, expected in (("best", 1), ("smoothed", 5), ("last", 6)):
        config.select = select
        score = history.selecting_score(config)
        checkpoints = Checkpoints(tmp_path / select, score)
        for record in epochs:
            state = State(np.int32(record["epoch"]), {"params": {"x": np.float32([0])}}, None)
            state.variables["params"]["x"][0] = record["epoch"]
            checkpoints.save(state, {"history": []}, record)
        checkpoints.close()
        assert load_variables(tmp_path / select, score)["params"]["x"] == expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.5], 0.5), ([0.1, 0.2, 0.3, 0.7], 0.4), ([0.9, 0.4, None, 0.2], 0.3)],
)
def test_smooth(scores, expected):
    assert history.smooth(scores) == pytest.approx(expected)


def test_the_end_of_a_run_says_how_it_was_selected():
    epochs = [{"miou": score} for score in SCORES[:4]]
    said = history.describe_selection(epochs, "best")
    assert said == (
        "validation mIoU: best 0.7700 (epoch 2), last 0.6000, mean of the last 3 0.5233; later "
        "jobs take the best: config.select is 'best'"
    )
    assert history.describe_selection([{"loss": 1.0}, {"miou": None}], "last") == ""
    assert np.isnan(history.smooth([]))
