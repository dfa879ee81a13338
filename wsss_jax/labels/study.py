"""The annotation study of the paper (Table V): time and consensus of labels and of drawings."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from data import folders
from data.patch_files import read_values
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.labels.agreement import MISSING, measure_consensus
from wsss_jax.labels.replay import Event, Replay
from wsss_jax.labels.review import tabulate_votes
from wsss_jax.labels.store import CHIEF, TAKEN_IN, Store
from wsss_jax.report.figures import SERIES_COLORS, STYLE
from wsss_jax.spreadsheets import escape_text, read_rows, write_rows

TIMES = "times.csv"  # of a folder of drawings


class Annotation(NamedTuple):
    """One way of annotating, by several people.

    Attributes:
      seconds: person -> seconds of each timed patch.
      patches: how many patches two or more people have annotated.
      consensus: agreeing labels / all labels; of drawings, agreeing pixels / all pixels.
    """

    seconds: Mapping[str, tuple[float, ...]]
    patches: int
    consensus: float

    def minutes(self, person: str) -> float:
        """Returns the minutes that a person takes for 100 patches; nan without times."""
        seconds = self.seconds.get(person, ())
        return 100 * sum(seconds) / len(seconds) / 60 if seconds else math.nan


def measure_labels(store: Store) -> Annotation:
    """Measures labels of patches.

    The time of a patch is that of looking at it until its last answer, with what was taken back
    meanwhile; absence does not count.
    """
    events: dict[int, list[Event]] = {}
    for recorded in store.list_events():
        events.setdefault(recorded.person, []).append(recorded.event)
    people = [p for p in store.list_people() if p.role not in (CHIEF, TAKEN_IN)]
    replays = {p.name: Replay(events.get(p.number, ())) for p in people}
    answers = {name: replay.answers for name, replay in replays.items() if replay.answers}
    patches = sorted({patch for of_person in answers.values() for patch in of_person})
    by_patch = [
        {name: of[patch].value for name, of in answers.items() if patch in of} for patch in patches
    ]
    votes = tabulate_votes(by_patch, list(answers), len(store.list_classes()))
    answered = (votes != MISSING).all(axis=-1).sum(axis=0)
    return Annotation(
        {
            name: tuple(seconds[patch] / 1000 for patch in of if seconds[patch])
            for name, of in answers.items()
            for seconds in (replays[name].looked,)
        },
        int((answered >= 2).sum()),
        measure_consensus(votes),
    )


def measure_drawings(folder: Path) -> Annotation:
    """Measures masks that people have drawn.

    Args:
      folder: has a folder of masks for each person, `<person>/<patch>.png`, and `times.csv` with
        the columns person, patch and seconds.

    Raises:
      InputError: no such folder or table, a time that is none, or masks of different sizes.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of drawings; correct --config.drawings")
    people = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    masks = {person: folders.find_pngs(folder / person) for person in people}
    if not any(masks.values()):
        raise InputError(
            f"{folder}: no masks; put those of each person into a folder with the person's name"
        )
    agreeing = total = patches = 0
    for stem in sorted({stem for of_person in masks.values() for stem in of_person}):
        paths = [of_person[stem] for of_person in masks.values() if stem in of_person]
        if len(paths) < 2:
            continue
        drawn = [read_values(path, None) for path in paths]
        if other := next((i for i, mask in enumerate(drawn) if mask.shape != drawn[0].shape), 0):
            raise InputError(
                f"{paths[other]} is {_format_size(drawn[other])}, {paths[0]} is "
                f"{_format_size(drawn[0])}: draw on the same patch"
            )
        agreeing += int(np.all(np.stack(drawn) == drawn[0], axis=0).sum())
        total += drawn[0].size
        patches += 1
    consensus = agreeing / total if total else math.nan
    return Annotation(_read_times(folder / TIMES, people), patches, consensus)


def _format_size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]} pixels"


def _read_times(table: Path, people: Sequence[str]) -> dict[str, tuple[float, ...]]:
    if not table.is_file():
        raise InputError(f"{table}: no such file; it has the columns person, patch and seconds")
    seconds: dict[str, dict[str, float]] = {person: {} for person in people}
    columns, rows = read_rows(table)
    if missing := [name for name in ("person", "patch", "seconds") if name not in columns]:
        raise InputError(f"{table} has no column {missing[0]}: add it")
    for line, row in rows:
        person, patch = row["person"], row["patch"]
        try:
            value = float(row["seconds"])
        except ValueError as error:
            raise InputError(
                f"{table}:{line}: {row['seconds']!r} are no seconds: write a number"
            ) from error
        if not 0 < value < math.inf:
            raise InputError(f"{table}:{line}: {value:g} seconds are impossible")
        if person not in seconds:
            raise InputError(f"{table}:{line}: there is no folder of {person}: correct it")
        if patch in seconds[person]:
            raise InputError(f"{table}:{line}: {person} has {patch} twice: keep one")
        seconds[person][patch] = value
    return {person: tuple(of_person.values()) for person, of_person in seconds.items()}


class Study(NamedTuple):
    """Ways of annotating, by their titles, such as "patch labels" and "drawings"."""

    ways: Mapping[str, Annotation]

    @property
    def people(self) -> list[str]:
        """Everybody who has annotated."""
        return sorted({name for way in self.ways.values() for name in way.seconds})


def format_text(study: Study) -> str:
    """Formats the paper's Table V for a terminal, and the consensus below it."""
    rows = [("minutes for 100 patches", *study.ways)]
    rows += [(name, *cells) for name, cells in _list_minutes(study)]
    rows.append(("mean", *(_format(_mean(study, way), ".1f") for way in study.ways.values())))
    rows.append(("consensus", *(_format(way.consensus, ".2%") for way in study.ways.values())))
    rows.append(("patches of two or more", *(str(way.patches) for way in study.ways.values())))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _list_minutes(study: Study) -> list[tuple[str, list[str]]]:
    return [
        (name, [_format(way.minutes(name), ".1f") for way in study.ways.values()])
        for name in study.people
    ]


def _mean(study: Study, way: Annotation) -> float:
    minutes = [way.minutes(name) for name in study.people]
    known = [value for value in minutes if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _format(value: float, style: str) -> str:
    return "-" if math.isnan(value) else format(value, style)


def write(workdir: Path, study: Study) -> None:
    """Writes `study.txt`, `study.csv`, `study.json` and `study.png`."""
    with atomic_path(workdir / "study.txt") as path:
        path.write_text(format_text(study) + "\n", encoding="utf-8")
    cells: list[list[Any]] = [["person", *map(escape_text, study.ways)]]
    cells += [
        [escape_text(name), *(_to_json(way.minutes(name)) for way in study.ways.values())]
        for name in study.people
    ]
    cells.append(["consensus", *(_to_json(way.consensus) for way in study.ways.values())])
    with (
        atomic_path(workdir / "study.csv") as path,
        path.open("w", encoding="utf-8", newline="") as table,
    ):
        write_rows(table, cells)
    document = {
        title: {
            "minutes_per_100_patches": {
                name: _to_json(way.minutes(name)) for name in study.people if name in way.seconds
            },
            "timed_patches": {name: len(seconds) for name, seconds in way.seconds.items()},
            "patches": way.patches,
            "consensus": _to_json(way.consensus),
        }
        for title, way in study.ways.items()
    }
    with atomic_path(workdir / "study.json") as path:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
    _draw(workdir / "study.png", study)


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value


def _draw(file: Path, study: Study) -> None:
    """Draws the minutes of each person, on a logarithmic axis: drawings take far longer."""
    people = study.people
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.5 + 1.4 * max(2, len(people)), 3.6), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(study.ways)
        for index, (title, way) in enumerate(study.ways.items()):
            places = np.arange(len(people)) + (index - (len(study.ways) - 1) / 2) * width
            minutes = [way.minutes(name) for name in people]
            consensus = _format(way.consensus, ".1%")
            bars = axes.bar(
                places,
                minutes,
                0.92 * width,
                color=SERIES_COLORS[index % len(SERIES_COLORS)],
                label=f"{title} (consensus {consensus})",
            )
            axes.bar_label(bars, [_format(value, ".1f") for value in minutes], fontsize=8)
        axes.set_yscale("log")
        axes.set_ylabel("minutes for 100 patches")
        axes.set_xticks(range(len(people)), people)
        axes.margins(y=0.15)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
