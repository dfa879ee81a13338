"""The table of several seeds in its four forms, where scores are undefined or seeds are missing."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.report import figures, seeds
from wsss_jax.statistics import Bootstrap, Difference

NAN = float("nan")
FIRST, SECOND = np.array([0.5, NAN, 0.25, 0.5, 0.75, 1]), np.array([0.25, NAN, 0.75, 0.5, 0.25, 1])


@pytest.fixture
def results() -> seeds.Results:
    difference = Difference((3,), -FIRST, np.full(6, NAN), -FIRST - 0.1, 0.1 - FIRST)
    return seeds.Results(
        classes=("tumor", "=stroma"),
        patches=12,
        units="4 regions",
        bootstrap=Bootstrap(100, 0.9, 0),
        scores={
            "paper": {"phase 2": {3: FIRST, 4: SECOND}},
            "mine": {"phase 2": {3: 0 * FIRST}},
        },
        differences=[seeds.Comparison("mine", "paper", "phase 2", difference)],
        missing=[seeds.Missing("mine", 4, "lung_phase2", "the loss is not finite")],
    )


def test_the_text_is_aligned_and_says_what_is_missing(results):
    *parts, missing = seeds.format_text(results).split("\n\n")
    assert missing == "not in the table: mine, seed 4: lung_phase2 failed: the loss is not finite"
    means, deviations, each, differences = (part.splitlines() for part in parts)
    for part in (means, deviations, each, differences):
        assert len({len(line) for line in part[1:]}) == 1
    assert means[3].split()[-5:] == [".37500", "-", ".50000", ".50000", ".50000"]
    assert deviations[4].split()[-5:] == ["-"] * 5  # of one seed
    assert each[4].startswith("paper: phase 2 [4]  ")
    assert "interval of 90 % over 4 regions" in differences[0]
    assert differences[3].split()[-5:] == ["-.50000", "-", "-.25000", "-.50000", "-.75000"]
    assert [line.split()[0] for line in differences[4:]] == ["low", "high", "sd"]


def test_the_files_hold_all_digits_and_no_nan(results, tmp_path):
    seeds.write(tmp_path, results)
    document = json.loads((tmp_path / "scores.json").read_text())
    with (tmp_path / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, document["rows"], strict=True):
        for name in ("variant", "baseline", "row", "statistic"):
            assert line[name] == row[name]
        assert row["iou"]["=stroma"] is None and line["'=stroma"] == ""
    assert {row["statistic"] for row in document["rows"] if row["baseline"]} == {
        "difference",
        "low",
        "high",
        "sd",
    }
    deviation = next(row for row in document["rows"] if row["statistic"] == "sd")
    assert deviation["acc"] == pytest.approx(0.5 / np.sqrt(2))
    assert (tmp_path / "scores.txt").read_text() == seeds.format_text(results) + "\n"


@pytest.mark.parametrize(
    ("units", "regions", "text"),
    [
        ([0, 1, 0, 2], 3, "3 regions"),
        ([0, 1], 0, "2 patches"),
        ([0, 0, 1], 1, "1 region and 1 patch"),
    ],
)
def test_what_is_resampled_is_said(units, regions, text):
    assert seeds.describe_units(np.array(units), regions) == text


def _find_color(path: Path, color: str) -> np.ndarray:
    """The pixels (row, column) of a color."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as image:
        return np.argwhere((np.asarray(image.convert("RGB")) == rgb).all(axis=-1))


def test_each_variant_has_points_at_the_height_of_its_scores(tmp_path):
    path = tmp_path / "seeds.png"
    panels = {"mIoU": {"paper": {"phase 2": [0.2, 0.3]}, "mine": {"phase 2": [0.6, 0.7, NAN]}}}
    figures.write_seed_points(path, panels)
    lower, upper = (_find_color(path, color) for color in figures.SERIES_COLORS[:2])
    with Image.open(path) as image:
        above_legend = 0.85 * image.height
    lower, upper = (pixels[pixels[:, 0] < above_legend] for pixels in (lower, upper))
    assert upper[:, 0].max() < lower[:, 0].min()
    assert upper[:, 1].min() > lower[:, 1].max()  # beside each other
