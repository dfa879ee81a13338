"""Scores trained runs on annotated patches."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data import patch_files
from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import inputs, metrics, parallel, patch_confusions, patch_records, runs
from wsss_jax.crf import DenseCrf, refine_probabilities
from wsss_jax.errors import InputError
from wsss_jax.files import clear_unfinished
from wsss_jax.methods.gate import Gate, check_gate
from wsss_jax.methods.prediction import Prediction
from wsss_jax.patch_confusions import PatchConfusions
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables
from wsss_jax.sources import Batch, Source, open_source
from wsss_jax.training.task import DeviceBatch
from wsss_jax.training.trained import Trained, bind, load_trained

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

# batch -> {row of the table: (label maps (B, H, W) uint8, confusion matrices (B, C, C + 1))}
Predictor = Callable[[Batch], dict[str, tuple[np.ndarray, np.ndarray]]]


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses a configuration without runs, or an impossible gate; see `config.validate`."""
    if not (config.phase1 or config.phase2 or config.runs):
        raise InputError(f"{prefix}phase1 and {prefix}phase2 are empty: name at least one run")
    check_gate(config, prefix)


class _Subject(NamedTuple):
    """What is scored: trained runs by the row of the table, and the gate's row, if there is one."""

    trained: dict[str, Trained]
    gated: str  # "" without gate
    dataset: Dataset

    @property
    def rows(self) -> list[str]:
        """The rows of the table, in its order; JAX sorts the names of what it returns."""
        return [*self.trained, *filter(None, [self.gated])]


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Scores the runs that the configuration names, and phase 2 with the gate of phase 1.

    Prints the paper's table and writes in `workdir`: `scores.json`, `scores.csv`, the counts of
    each patch (`confusions.npz`), and for the last row of the table `predictions/<stem>.png`,
    `confusion.png`, `worst.png` and `best.png`; `examples.png` shows all rows.
    """
    config, subject = complete(config)
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

    predict = _make_predictor(config, subject)
    by_patch = _score_patches(config, workdir, source, dataset, predict)
    if not parallel.is_first():
        return
    counts = np.stack([by_patch[name] for name in subject.rows])
    patch_confusions.save(PatchConfusions((*subject.rows,), (*source.names,), counts), workdir)
    totals = {name: by_patch[name].sum(axis=0, dtype=np.int64) for name in subject.rows}
    last = subject.rows[-1]
    rows = [(MAJORITY, metrics.majority_scores(totals[last]))]
    rows += [(name, metrics.segmentation_scores(total)) for name, total in totals.items()]
    print(tables.format_table(rows, dataset.classes))
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


def complete(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.FrozenConfigDict, _Subject]:
    """Loads the runs, and completes the configuration by the data of the last one.

    Raises:
      InputError: no such runs, or runs with other classes.
    """
    phases = config.phase1, config.phase2
    named = [("runs", path, "") for path in dict.fromkeys(config.runs) if path not in phases]
    named += [("phase1", config.phase1, "presence"), ("phase2", config.phase2, "logits")]
    loaded = [
        (path, load_trained(path, field, gives, config.precision, config.tta))
        for field, path, gives in named
        if path
    ]
    by_row = _name_rows(loaded)
    last_row, last = list(by_row.items())[-1]
    for each in by_row.values():
        if each.dataset.classes != last.dataset.classes:
            raise InputError(
                "the runs to score have other classes "
                f"({each.dataset.classes}, {last.dataset.classes}): name runs of one data set"
            )
        if config.crf.iterations and not each.gives_probabilities:
            raise InputError(
                f"{each.method.TITLE} gives label maps without probabilities, which the CRF needs: "
                "set --config.crf.iterations=0, or name runs of other methods"
            )
    gated = ""
    if config.phase1 and config.phase2 and config.gate.mode != "off":
        gated = f"{last_row} + gate"
    data = runs.inherit_data(config.data, last.config.data)
    subject = _Subject(by_row, gated, last.dataset)
    return config_lib.replace(config, data=data), subject


def _name_rows(loaded: Sequence[tuple[str, Trained]]) -> dict[str, Trained]:
    """Names runs as tables do: by their method, and by their folders where several are of one."""
    rows: dict[str, Trained] = {}
    for index, (path, each) in enumerate(loaded):
        name = title = each.method.TITLE
        rest = [*loaded[:index], *loaded[index + 1 :]]
        if twins := [other for other, run in rest if title == run.method.TITLE]:
            name = f"{title}: {_name_folder(path, twins)}"
        rows[f"{name} (2)" if name in rows else name] = each  # one run as both phases
    return rows


def _name_folder(path: str, others: Sequence[str]) -> str:
    """Returns the end of a path by which it differs from others, in whole names."""
    parts, *rest = (Path(os.path.abspath(each)).parts for each in (path, *others))
    ends = (parts[-length:] for length in range(1, len(parts) + 1))
    different = (end for end in ends if all(each[-len(end) :] != end for each in rest))
    return str(Path(*next(different, parts)))


def _make_predictor(config: ml_collections.ConfigDict, subject: _Subject) -> Predictor:
    """Makes the predictor of all rows, one program over the local devices."""
    gate, crf = Gate.of(config.gate), DenseCrf.of(config.crf)

    def refine(predictions: dict[str, Prediction], image: jax.Array) -> dict[str, jax.Array]:
        size = image.shape[1:3]
        probabilities = {
            name: trained.compute_probabilities(predictions[name], size)
            for name, trained in subject.trained.items()
        }
        if subject.gated:
            *_, classifier, segmenter = (predictions[name] for name in subject.trained)
            assert segmenter.logits is not None and classifier.presence is not None  # `complete`
            probabilities[subject.gated] = gate.probabilities(segmenter.logits, classifier.presence)
        refined = {k: refine_probabilities(v, image, crf) for k, v in probabilities.items()}
        return {name: each.argmax(axis=-1).astype(jnp.uint8) for name, each in refined.items()}

    def combine(
        predictions: dict[str, Prediction], batch: DeviceBatch
    ) -> dict[str, tuple[jax.Array, jax.Array]]:
        label_maps = {name: each.label_maps for name, each in predictions.items()}
        if subject.gated:
            *_, classifier, segmenter = (predictions[name] for name in subject.trained)
            assert segmenter.logits is not None and classifier.presence is not None  # `complete`
            label_maps[subject.gated] = gate.segment(segmenter.logits, classifier.presence)
        if crf.iterations:
            label_maps = refine(predictions, batch["image"])
        truth, num_classes = batch["masks"][:, 0], subject.dataset.num_classes
        return {
            name: (maps, metrics.confusion_matrices(truth, maps, num_classes))
            for name, maps in label_maps.items()
        }

    predict = bind(subject.trained, combine)

    def predict_rows(batch: Batch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        by_name = predict(batch)
        return {name: by_name[name] for name in subject.rows}

    return predict_rows


def _score_patches(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source,
    dataset: Dataset,
    predict: Predictor,
) -> dict[str, np.ndarray]:
    """Predicts all patches, and writes the label maps of the last row.

    Returns:
      (N, C, C + 1) confusion matrices of the patches, by row of the table.
    """
    with show_progress(total=len(source), unit="patch") as bar:

        def count(batch: Batch) -> dict[str, np.ndarray]:
            real = batch["weight"] > 0
            rows = predict(batch)
            label_maps, _ = list(rows.values())[-1]
            for index, label_map in zip(batch["index"][real], label_maps[real]):
                path = workdir / PREDICTIONS / f"{source.names[index]}.png"
                patch_files.write_mask(path, label_map, dataset)
            bar.update(int(real.sum()) * jax.process_count())
            return {name: counts for name, (_, counts) in rows.items()}

        return inputs.map_patches(source, config.batch_size, count, workers=config.data.workers)


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
    between = np.linspace(0, len(ranked) - 1, count + 2, dtype=int)[1:-1]
    chosen = {
        "worst": ranked[:count],
        "best": ranked[::-1][:count],
        "examples": [ranked[i] for i in between],
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
                name: np.where(truth < num_classes, maps[row], truth)
                for name, (maps, _) in rows.items()
            }
