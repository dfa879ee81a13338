"""Scores trained runs on annotated patches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from data import patch_files
from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import inputs, metrics, parallel, patch_confusions, patch_records, runs
from wsss_jax.errors import InputError
from wsss_jax.methods.gate import check_gate
from wsss_jax.patch_confusions import PatchConfusions
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables
from wsss_jax.scoring import Predictor, load_subject, make_predictor
from wsss_jax.sources import Batch, Source, open_source

SHARED = True
FIELDS = {
    **rules.DATA,
    "phase1": rules.TEXT,
    "phase2": rules.TEXT,
    "runs": rules.added(rules.sequence(rules.NAME), ()),
    "split": rules.one_of("val", "test"),
    "gate.mode": rules.one_of("probabilities", "logits", "off"),
    "gate.threshold": rules.PROBABILITY,
    "batch_size": rules.integer(1, rules.MOST_EXAMPLES),
    "precision": rules.added(rules.PRECISION, ""),
    "tta": rules.TTA,
    **rules.CRF,
    "palette": rules.added(rules.PALETTE, "dataset"),
    "sheet_patches": rules.integer(0, 1000),
}
PREDICTIONS = "predictions"
MAJORITY = "majority class"
_PICTURES = "confusion.png", "worst.png", "best.png", "examples.png"
_RESULTS = "scores.json", "scores.csv", patch_confusions.FILE, *_PICTURES


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses a configuration without runs, or an impossible gate; see `config.validate`."""
    if not (config.phase1 or config.phase2 or config.runs):
        raise InputError(f"{prefix}phase1 and {prefix}phase2 are empty: name at least one run")
    check_gate(config, prefix)


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Scores the runs that the configuration names, and phase 2 with the gate of phase 1.

    Prints the paper's table and writes in `workdir`: `scores.json`, `scores.csv`, the counts of
    each patch (`confusions.npz`), and for the last row of the table `predictions/<stem>.png`,
    `confusion.png`, `worst.png` and `best.png`; `examples.png` shows all rows.
    """
    config, subject = load_subject(config)
    dataset = subject.dataset
    parallel.check_batch_size(config.batch_size)
    source = open_source(config.data, dataset, config.split)
    if "masks" not in source[0]:
        raise InputError(
            f"{config.data.root}: the {config.split} patches have no masks to compare with: add "
            f"{config.split}/mask"
        )
    runs.check(config, workdir, started=False)  # its results are made again
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        # Before the new settings are written, which results of the run before do not belong to.
        _remove_results(source.records, workdir)
        runs.save(config, dataset, workdir)
        (workdir / PREDICTIONS).mkdir(exist_ok=True)
        patch_records.save(source.records, workdir)
    parallel.wait_for_all("made the folders")

    predict = make_predictor(config, subject)
    by_patch, of_labels = _score_patches(config, workdir, source, dataset, predict)
    if not parallel.is_first():
        return
    counts = np.stack([by_patch[name] for name in subject.rows])
    patch_confusions.save(PatchConfusions((*subject.rows,), (*source.names,), counts), workdir)
    totals = {name: by_patch[name].sum(axis=0, dtype=np.int64) for name in subject.rows}
    last = subject.rows[-1]
    rows = [(MAJORITY, metrics.segmentation_scores(metrics.predict_majority(totals[last])))]
    rows += [
        (name, metrics.segmentation_scores(total) | {tables.PATCHES: of_labels.get(name)})
        for name, total in totals.items()
    ]
    print(tables.format_table(rows, dataset.classes))
    for name, scores in of_labels.items():
        print(
            f"{name}: {100 * scores['patch_accuracy']:.2f} % of the labels of patches are right, "
            f"all of a patch in {100 * scores['exact_match']:.2f} %"
        )
    meta = {
        "split": config.split,
        "patches": len(source),
        "phase1": config.phase1,
        "phase2": config.phase2,
        "runs": list(config.runs),
        "gate": config.gate.to_dict(),
        "tta": config.tta,
        **({"crf": config.crf.to_dict()} if config.crf.iterations else {}),
    }
    tables.write_scores(
        workdir / "scores.json", workdir / "scores.csv", rows, dataset.classes, meta
    )
    figures.write_confusion_matrix(workdir / "confusion.png", totals[last], dataset.classes)
    if config.sheet_patches:
        _write_sheets(config, workdir, source, dataset, _Ranked(last, by_patch[last], predict))


def _score_patches(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source,
    dataset: Dataset,
    predict: Predictor,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Predicts all patches, and writes the label maps of the last row.

    Returns:
      (N, C, C + 1) confusion matrices of the patches, by row of the table, and the scores of patch
      labels by row, where a method gives them; see `metrics.multilabel_scores`.
    """
    counts_of, presence_of, label = "counts of ", "presence in ", "label"
    with show_progress(total=len(source), unit="patch") as bar:

        def count(batch: Batch) -> dict[str, np.ndarray]:
            real = batch["weight"] > 0
            rows = predict(batch)
            label_maps = list(rows.values())[-1].label_maps[real]
            for index, label_map in zip(batch["index"][real], label_maps):
                path = workdir / PREDICTIONS / f"{source.names[index]}.png"
                patch_files.write_mask(path, label_map, dataset)
            bar.update(int(real.sum()) * jax.process_count())
            found = {f"{counts_of}{name}": row.confusions for name, row in rows.items()}
            for name, row in rows.items():
                if row.presence is not None:
                    found[f"{presence_of}{name}"] = row.presence
            return found | {label: batch["label"]}

        whole = inputs.map_patches(source, config.batch_size, count, workers=config.data.workers)
    labels = whole.pop(label)
    return (
        {
            name.removeprefix(counts_of): counts
            for name, counts in whole.items()
            if name.startswith(counts_of)
        },
        {
            name.removeprefix(presence_of): metrics.multilabel_scores(presence, labels)
            for name, presence in whole.items()
            if name.startswith(presence_of)
        },
    )


def _remove_results(records: Sequence[PatchRecord], workdir: Path) -> None:
    """Removes what the run before has written, maybe of another split, as far as it is on record.

    Raises:
      InputError: files in it that this run will not write, and no record that one before did.
    """
    folder = workdir / PREDICTIONS
    before = patch_records.load(workdir)
    if before is None and folder.is_dir():
        names = {f"{record.name}.png" for record in records}
        for path in sorted(folder.iterdir()):
            if path.name not in names and not path.name.startswith("."):
                raise InputError(
                    f"{path} is of no patch of this split: remove it, or name another --workdir"
                )
    for record in before or ():
        (folder / f"{record.name}.png").unlink(missing_ok=True)
    for name in _RESULTS if (workdir / config_lib.CONFIG_FILE).is_file() else ():
        (workdir / name).unlink(missing_ok=True)


def spread(length: int, count: int) -> list[int]:
    """Chooses places of a ranking between its ends, evenly; all of them if there are no more."""
    if count >= length:
        return list(range(length))
    return np.linspace(0, length - 1, count + 2, dtype=int)[1:-1].tolist()


def load_patch_accuracy(workdir: Path) -> float | None:
    """Reads which share of the labels of patches the last row has right; None if it gives none.

    Raises:
      InputError: no scores there, or those of an earlier version.
    """
    path = workdir / "scores.json"
    try:
        scores = json.loads(path.read_bytes())["rows"][-1][tables.PATCHES]
        return None if scores is None else float(scores["patch_accuracy"])
    except (FileNotFoundError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: no scores of this version; run that evaluation again") from error


def load_prediction(workdir: Path, name: str, dataset: Dataset) -> np.ndarray:
    """Reads the label map (H, W) of a patch, of the last row."""
    return patch_files.read_mask(workdir / PREDICTIONS / f"{name}.png", dataset, None)


def summary(workdir: Path) -> dict[str, float]:
    """Reads the mIoU of the last row (phase 2, with gate unless it is off), and of the others."""
    rows = json.loads((workdir / "scores.json").read_text())["rows"]
    miou = {row["name"]: row["miou"] for row in rows}
    return {"phase2": rows[-1]["miou"], "phase1": miou["phase 1"], "majority": miou[MAJORITY]}


class _Ranked(NamedTuple):
    """A row of the table with the confusion matrices by which its patches are ranked."""

    name: str
    confusions: np.ndarray
    predict: Predictor


def _write_sheets(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source,
    dataset: Dataset,
    ranked_by: _Ranked,
) -> None:
    """Draws the worst and the best patches of a row, and some between with all rows."""
    miou = metrics.patch_miou(ranked_by.confusions)
    ranked = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    if not ranked:
        return
    count = min(config.sheet_patches, len(ranked))
    chosen = {
        "worst": ranked[:count],
        "best": ranked[::-1][:count],
        "examples": [ranked[i] for i in spread(len(ranked), count)],
    }
    indices = sorted(set().union(*chosen.values()))
    legend = colors.make_legend(dataset, config.palette)
    patches = [source[index] for index in indices]
    predicted = _predict_rows(patches, dataset.num_classes, config.batch_size, ranked_by.predict)
    rows = {
        index: figures.SheetRow(source.names[index], patch["image"], masks, truth=patch["masks"][0])
        for index, patch, masks in zip(indices, patches, predicted)
    }
    for name in ("worst", "best"):
        sheet = [
            rows[i]._replace(
                masks={ranked_by.name: rows[i].masks[ranked_by.name]}, miou=float(miou[i])
            )
            for i in chosen[name]
        ]
        title = f"{config.split}: {name} patches first"
        figures.write_evaluation_sheet(workdir / f"{name}.png", sheet, legend, title)
    examples = [rows[i] for i in chosen["examples"]]
    figures.write_demo_banner(workdir / "examples.png", examples, legend)


def _predict_rows(
    patches: Sequence[Batch], num_classes: int, batch_size: int, predict: Predictor
) -> Iterator[Mapping[str, np.ndarray]]:
    """Predicts patches: for each the label maps of all rows, at the pixels that count."""
    for batch in inputs.read_batches(patches, batch_size, workers=0, shared=False):
        rows = predict(batch)
        for row in range(int(batch["weight"].sum())):
            truth = batch["masks"][row, 0]
            yield {
                name: np.where(truth < num_classes, of_row.label_maps[row], truth)
                for name, of_row in rows.items()
            }
