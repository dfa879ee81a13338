"""The job that opens a trained classifier into pseudo masks of several layers."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from data import folders
from data.dataset import Dataset
from wsss_jax import cam, inputs, masks, metrics, parallel, phase1, runs, training
from wsss_jax.report import figures, tables

FOLDER = "train_PM"
WRITERS = 8  # threads; PNG encoding releases the interpreter lock


def layer_dir(workdir: Path, layer: str) -> Path:
    """Where a run keeps the masks of a layer: `train_PM/PM_<layer>`, as the reference does."""
    return Path(workdir) / FOLDER / f"PM_{layer}"


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the pseudo masks of all training patches, their contact sheet and their scores.

    In `workdir`: `train_PM/PM_<layer>/<stem>.png`, `contact_sheet.png` and, where the data set has
    validation masks, `scores.json` / `.csv`: the same rules on the validation patches, whose labels
    come from their true masks.
    """
    classifier = phase1.load(config.phase1, "phase1")
    runs.inherit_data(config.data, classifier.config.data)
    parallel.check_batch_size(config.batch_size)
    dataset = classifier.dataset
    source = inputs.open_source(config.data, dataset, "train")
    runs.save(config, dataset, workdir)
    directories = {layer: layer_dir(workdir, layer) for layer in config.layers}
    for directory in directories.values():
        directory.mkdir(parents=True, exist_ok=True)
    opened = _mapped(config, classifier)
    sample = _sample(config, len(source))
    sheet: list[figures.SheetRow] = []

    with (
        ThreadPoolExecutor(WRITERS) as pool,
        tqdm(total=len(source), unit="patch", **training.progress_style()) as progress,
    ):
        pending: list[Future] = []
        for batch in inputs.batches(source, config.batch_size, workers=config.data.workers):
            label_maps = opened(classifier.variables, batch)
            for future in pending:  # of the batch before: no more than two are in memory
                future.result()
            pending = []
            for row in range(int(batch["weight"].sum())):
                index = int(batch["index"][row])
                of_patch = _with_white(
                    config, dataset, batch["image"][row], {k: v[row] for k, v in label_maps.items()}
                )
                for layer, mask in of_patch.items():
                    path = directories[layer] / f"{source.names[index]}.png"
                    pending.append(pool.submit(folders.write_mask, path, mask, dataset))
                if index in sample:
                    label = batch["label"][row]
                    sheet.append(
                        figures.SheetRow(
                            source.names[index], batch["image"][row], of_patch, label=label
                        )
                    )
                progress.update()
        for future in pending:
            future.result()
    if sheet:
        figures.contact_sheet(
            sheet, dataset.palette, dataset.classes, workdir / "contact_sheet.png"
        )
    if inputs.has_split(config.data, "val"):
        _score(config, classifier, opened, workdir)


def _mapped(config: ml_collections.ConfigDict, classifier: training.Trained):
    """`(variables, batch) -> {layer: label maps (B, H, W) uint8}` over the local devices."""

    def open_batch(variables, batch: inputs.Batch) -> dict[str, jax.Array]:
        image = batch["image"]
        maps, _ = cam.grad_cam(
            classifier.model,
            variables,
            inputs.scaled(image, classifier.config.model),
            tuple(config.layers),
        )
        size = image.shape[1:3]
        return {k: masks.label_maps(m, batch["label"], size) for k, m in maps.items()}

    return parallel.map_batch(open_batch)


def _with_white(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    image: np.ndarray,
    label_maps: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The masks of one patch with its white background set to the excluded index."""
    if not dataset.white:
        return dict(label_maps)
    white = masks.white_background(image, config.white_threshold, config.white_min_area)
    return {
        layer: np.where(white, np.uint8(dataset.excluded), mask)
        for layer, mask in label_maps.items()
    }


def _sample(config: ml_collections.ConfigDict, patches: int) -> set[int]:
    rng = np.random.default_rng(config.seed)
    count = min(config.sheet_patches, patches)
    return set(rng.choice(patches, count, replace=False).tolist())


def _score(config, classifier: training.Trained, opened, workdir: Path) -> None:
    """Scores the masks that the same rules give to the validation patches."""
    dataset = classifier.dataset
    source = inputs.open_source(config.data, dataset, "val")
    shape = (dataset.num_classes, dataset.num_classes + 1)
    confusion = {layer: np.zeros(shape, np.int64) for layer in config.layers}
    for batch in inputs.batches(source, config.batch_size, workers=0):
        label_maps = opened(classifier.variables, batch)
        for row in range(int(batch["weight"].sum())):
            of_patch = _with_white(
                config, dataset, batch["image"][row], {k: v[row] for k, v in label_maps.items()}
            )
            for layer, mask in of_patch.items():
                confusion[layer] += metrics.confusion_matrix(
                    batch["masks"][row], mask[None], dataset.num_classes
                )
    rows = [(layer, metrics.segmentation_scores(confusion[layer])) for layer in config.layers]
    print("pseudo masks of the validation patches")
    print(tables.format_table(rows, dataset.classes))
    tables.write_scores(
        workdir / "scores.json", workdir / "scores.csv", rows, dataset.classes, {"split": "val"}
    )
