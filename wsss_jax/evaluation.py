"""The job that scores both phases on annotated patches."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data import patch_files
from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import (
    inputs,
    metrics,
    parallel,
    patch_records,
    phase1,
    phase2,
    runs,
    sources,
    training,
)
from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables

# (variables of both phases, batch) -> {row of the table: (label maps, confusion matrices)}
Predict = Callable[[Sequence[Any], sources.Batch], dict[str, tuple[np.ndarray, np.ndarray]]]
PREDICTIONS = "predictions"
_RESULTS = "scores.json", "scores.csv", "confusion.png", "worst.png", "best.png", "examples.png"
PHASE1, PHASE2, GATED, MAJORITY = "phase 1", "phase 2", "phase 2 + gate", "majority class"


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Scores phase 1, phase 2, and phase 2 with gate; whichever runs the configuration names.

    Prints the paper's table and writes in `workdir`: `scores.json`, `scores.csv`, and for the last
    row of the table `predictions/<stem>.png`, `confusion.png`, `worst.png` and `best.png`;
    `examples.png` shows all rows.
    """
    classifier = phase1.load(config.phase1, "phase1", config.precision) if config.phase1 else None
    segmenter = phase2.load(config.phase2, "phase2", config.precision) if config.phase2 else None
    dataset = _dataset(config, classifier, segmenter)
    runs.inherit_data(config.data, (segmenter or classifier).config.data)
    parallel.check_batch_size(config.batch_size)
    source = sources.open_source(config.data, dataset, config.split)
    if "masks" not in source[0]:
        raise InputError(
            f"{config.data.root}: the {config.split} patches have no masks to compare with: add "
            f"{config.split}/mask"
        )
    runs.check(config, workdir, started=False)  # its results are made anew
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        # Before the new settings are written, which results of the run before do not belong to.
        _remove_results(source.records, workdir)
        runs.save(config, dataset, workdir)
        (workdir / PREDICTIONS).mkdir(exist_ok=True)
        patch_records.save(source.records, workdir)
    parallel.wait_for_all("made the folders")

    predict = _predictor(config, dataset, classifier, segmenter)
    variables = [trained and trained.variables for trained in (classifier, segmenter)]
    with show_progress(
        total=len(source),
        unit="patch",
    ) as progress:

        def count(batch: sources.Batch) -> dict[str, np.ndarray]:
            real = batch["weight"] > 0
            found = predict(variables, batch)
            label_maps, _ = list(found.values())[-1]
            for index, label_map in zip(batch["index"][real], label_maps[real]):
                path = workdir / PREDICTIONS / f"{source.names[index]}.png"
                patch_files.write_mask(path, label_map, dataset)
            progress.update(int(real.sum()) * jax.process_count())
            return {name: counts for name, (_, counts) in found.items()}

        by_patch = inputs.map_patches(source, config.batch_size, count, workers=config.data.workers)
    if not parallel.is_first():
        return
    totals = {name: counts.sum(axis=0, dtype=np.int64) for name, counts in by_patch.items()}

    last = list(totals)[-1]
    rows = [(MAJORITY, metrics.majority_scores(totals[last]))]
    rows += [(name, metrics.segmentation_scores(total)) for name, total in totals.items()]
    print(tables.format_table(rows, dataset.classes))
    meta = {
        "split": config.split,
        "patches": len(source),
        "phase1": config.phase1,
        "phase2": config.phase2,
        "gate": config.gate.to_dict(),
    }
    tables.write_scores(
        workdir / "scores.json", workdir / "scores.csv", rows, dataset.classes, meta
    )
    figures.confusion_figure(totals[last], dataset.classes, workdir / "confusion.png")
    if config.sheet_patches:
        _write_sheets(config, workdir, dataset, source, by_patch[last], last, predict, variables)


def _remove_results(records: Sequence[PatchRecord], workdir: Path) -> None:
    """Removes what the run before has written, maybe of another split, as far as it is on record.

    Raises:
      InputError: files in it that this run will not write, and no record that one before did.
    """
    folder = workdir / PREDICTIONS
    before = patch_records.load(workdir)
    clear_unfinished(folder)
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


def summary(workdir: Path) -> dict[str, float]:
    """mIoU of phase 2 (with gate unless it is off), phase 1 and the majority class."""
    rows = json.loads((workdir / "scores.json").read_text())["rows"]
    miou = {row["name"]: row["miou"] for row in rows}
    return {"phase2": rows[-1]["miou"], "phase1": miou[PHASE1], "majority": miou[MAJORITY]}


def _dataset(
    config: ml_collections.ConfigDict,
    classifier: training.Trained | None,
    segmenter: training.Trained | None,
) -> Dataset:
    if classifier is None or segmenter is None:
        return (classifier or segmenter).dataset
    if classifier.dataset.classes != segmenter.dataset.classes:
        raise InputError(
            "config.phase1 and config.phase2 are runs with other classes "
            f"({classifier.dataset.classes}, {segmenter.dataset.classes}): name two of one data set"
        )
    return segmenter.dataset


def _predictor(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    classifier: training.Trained | None,
    segmenter: training.Trained | None,
) -> Predict:
    """What every method that the configuration names makes of a batch, over the local devices."""

    def predict(
        variables: Sequence[Any], batch: sources.Batch
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        image, truth = batch["image"], batch["masks"][:, 0]
        found = {}
        if classifier is not None:
            probability, found[PHASE1] = phase1.predict(
                classifier.config, classifier.model, variables[0], image
            )
        if segmenter is not None:
            logits = phase2.predict(segmenter.config, segmenter.model, variables[1], image)
            found[PHASE2] = logits.argmax(axis=-1).astype(jnp.uint8)
            if classifier is not None and config.gate.mode != "off":
                found[GATED] = phase2.gate(
                    logits, probability, mode=config.gate.mode, threshold=config.gate.threshold
                )
        return {
            name: (maps, metrics.confusion_matrices(truth, maps, dataset.num_classes))
            for name, maps in found.items()
        }

    return parallel.map_batch(predict)


def _write_sheets(
    config: ml_collections.ConfigDict,
    workdir: Path,
    dataset: Dataset,
    source: sources.Source,
    confusions: np.ndarray,
    method: str,
    predict: Predict,
    variables: Sequence[Any],
) -> None:
    """Pictures of the worst and the best patches by `method`, and of some between, all methods."""
    miou = metrics.patch_miou(confusions)
    ranked = [int(i) for i in np.argsort(miou, kind="stable") if not np.isnan(miou[i])]
    if not ranked:
        return
    count = min(config.sheet_patches, len(ranked))
    chosen = {
        "worst": ranked[:count],
        "best": ranked[::-1][:count],
        "examples": [
            ranked[i] for i in np.linspace(0, len(ranked) - 1, count + 2, dtype=int)[1:-1]
        ],
    }
    indices = sorted(set().union(*chosen.values()))
    palette = colors.for_pictures(dataset, config.palette).palette
    rows = dict(_predicted_rows(config, source, dataset.num_classes, indices, predict, variables))
    for name in ("worst", "best"):
        sheet = [
            rows[i]._replace(masks={method: rows[i].masks[method]}, miou=float(miou[i]))
            for i in chosen[name]
        ]
        figures.evaluation_sheet(
            sheet,
            palette,
            dataset.classes,
            workdir / f"{name}.png",
            title=f"{config.split}: {name} patches first",
        )
    figures.demo_banner(
        [rows[i] for i in chosen["examples"]],
        palette,
        dataset.classes,
        workdir / "examples.png",
    )


def _predicted_rows(
    config: ml_collections.ConfigDict,
    source: sources.Source,
    num_classes: int,
    indices: Sequence[int],
    predict: Predict,
    variables: Sequence[Any],
) -> Iterator[tuple[int, figures.SheetRow]]:
    """The chosen patches with what every method makes of the pixels that count."""
    chosen = [source[index] for index in indices]
    for batch in inputs.read_batches(chosen, config.batch_size, workers=0, shared=False):
        found = predict(variables, batch)
        for row in range(int(batch["weight"].sum())):
            index = int(batch["index"][row])
            truth = batch["masks"][row, 0]
            masks = {
                name: np.where(truth < num_classes, maps[row], truth)
                for name, (maps, _) in found.items()
            }
            sheet_row = figures.SheetRow(
                source.names[index], batch["image"][row], masks, truth=truth
            )
            yield index, sheet_row
