"""The data set that follows from what people have answered."""

import filecmp
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.dataset import Dataset, format_label, save_dataset, strip_label
from wsss_jax import spreadsheets
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, check_writable, clear_unfinished, hold_lock
from wsss_jax.labels.patches import PatchFile
from wsss_jax.labels.review import Agreement, Reviewed

LABELS, AGREEMENT, DATASET = "labels.csv", "agreement.json", "dataset.json"
TRAIN = "train"
UNDRAWN = "undrawn"  # patches of val and test, which need masks instead of labels
NO_CLASS = "no class"  # why a label is not exported


def export(
    out: Path,
    dataset: Dataset,
    patches: Mapping[str, PatchFile],
    reviewed: Sequence[Reviewed],
    agreement: Agreement,
    is_random: Callable[[int], bool],
) -> Counter[str]:
    """Writes a data set of the patches that have a label, in the layout that all jobs read.

    In `out`: `dataset.json`; `train/<patch>-[1 0 0 1].png`; `undrawn/<split>/img/<patch>.png`, the
    patches of val and test that have a label; `labels.csv` with every answer; `agreement.json`. The
    same answers give the same bytes. What an earlier export has written and does not hold any more
    is removed.

    Args:
      out: the folder.
      dataset: its description.
      patches: by name.
      reviewed: all patches.
      agreement: of the people whose answers are listed.
      is_random: whether a patch, by its number, is of the random sample; see `order.is_random`.

    Returns:
      How many patches there are by what became of them.

    Raises:
      InputError: in the way are files that no export has written.
    """
    wanted: dict[Path, Path] = {}
    counts: Counter[str] = Counter()
    lines: list[list[Any]] = [
        ["patch", "split", "file", "label", "how", "random", *agreement.people]
    ]
    for each in reviewed:
        patch, (label, how) = patches[each.name], each.consensus
        file = ""
        if label is not None and not any(label):
            how = NO_CLASS
        elif label is not None:
            stem = strip_label(patch.path.stem)
            if patch.split == TRAIN:
                target = out / TRAIN / f"{stem}{format_label(label, dataset)}.png"
            else:
                target = out / UNDRAWN / patch.split / "img" / f"{stem}.png"
            wanted[target] = patch.path
            file = target.relative_to(out).as_posix()
        counts[how] += 1
        text = "" if label is None else "".join(map(str, label))
        answers = [each.answers.get(person, "") for person in agreement.people]
        is_drawn = str(int(is_random(each.number)))
        cells = [each.name, patch.split, file, text, how, is_drawn, *answers]
        lines.append(list(map(spreadsheets.escape_text, cells)))
    owned = [(out / name).resolve() for name in (TRAIN, UNDRAWN)]
    for patch in patches.values():
        if any(patch.path.resolve().is_relative_to(folder) for folder in owned):
            raise InputError(
                f"{out} is the folder of the patches themselves, such as {patch.path}: name "
                "another --config.out"
            )
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    with hold_lock(out / ".export.lock"):
        others = _find_others(out, wanted, {strip_label(p.path.stem) for p in patches.values()})
        clear_unfinished(out)
        for target, source in wanted.items():
            if not target.is_file() or not filecmp.cmp(source, target, shallow=False):
                target.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(target) as path:
                    shutil.copyfile(source, path)
        for path in others:
            path.unlink()
        with atomic_path(out / DATASET) as path:
            save_dataset(dataset, path)
        with atomic_path(out / AGREEMENT) as path:
            text = json.dumps(describe_agreement(agreement, dataset.classes), indent=2)
            path.write_text(text + "\n", encoding="utf-8")
        with (
            atomic_path(out / LABELS) as path,
            path.open("w", encoding="utf-8", newline="") as table,
        ):
            spreadsheets.write_rows(table, lines)
    return counts


def _find_others(out: Path, wanted: Mapping[Path, Path], stems: set[str]) -> list[Path]:
    """Finds what an earlier export has written of patches that are gone, or labeled otherwise now.

    Raises:
      InputError: a file is of no patch: someone else has put it there.
    """
    others = [
        path
        for folder in (out / TRAIN, *out.glob(f"{UNDRAWN}/*/img"))
        if folder.is_dir()
        for path in folder.iterdir()
        if path not in wanted and not path.name.startswith(".")
    ]
    earlier = _read_files(out / LABELS)
    foreign = sorted(
        path
        for path in others
        if strip_label(path.stem) not in stems and path.relative_to(out).as_posix() not in earlier
    )
    if foreign:
        raise InputError(
            f"{foreign[0]} was not written by an export (one of {len(foreign)}): move it, or name "
            "another folder"
        )
    return others


def _read_files(table: Path) -> set[str]:
    """Reads which files an earlier export has written; none where its table is none."""
    try:
        _, rows = spreadsheets.read_rows(table) if table.is_file() else ([], [])
    except InputError:
        return set()
    return {row.get("file", "") for _, row in rows}


def describe_agreement(agreement: Agreement, classes: Sequence[str]) -> dict[str, Any]:
    """Returns the agreement in the types of JSON; what is undefined is null."""

    def name(values: np.ndarray) -> dict[str, float | None]:
        return dict(zip(classes, map(_to_json, values.tolist()), strict=True))

    return {
        "people": list(agreement.people),
        "patches": agreement.patches,
        "consensus": _to_json(agreement.consensus),
        "cohen": [
            {"people": list(pair), **name(values)} for pair, values in agreement.cohen.items()
        ],
        "fleiss": name(agreement.fleiss),
        "krippendorff": name(agreement.krippendorff),
        "confusions": agreement.confusions.tolist(),
    }


def _to_json(value: float) -> float | None:
    return None if math.isnan(value) else value
