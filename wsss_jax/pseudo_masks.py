"""The job that opens a trained classifier into pseudo masks of several layers."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from data import folders, patch_files
from data.dataset import Dataset
from wsss_jax import (
    cam,
    inputs,
    masks,
    metrics,
    parallel,
    patch_records,
    phase1,
    pixels,
    runs,
    sources,
    training,
)
from wsss_jax.files import atomic_path, clear_unfinished
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables

# (variables, batch) -> {layer: label maps (B, H, W) uint8}
Open = Callable[[training.Variables, sources.Batch], dict[str, np.ndarray]]
FOLDER = "train_PM"
_RESULTS = "scores.json", "scores.csv", "contact_sheet.png"  # made of the masks
WRITERS = 8  # threads; PNG encoding releases the interpreter lock


def layer_dir(workdir: Path, layer: str) -> Path:
    """Where a run keeps the masks of a layer: `train_PM/PM_<layer>`, as the reference does."""
    return Path(workdir) / FOLDER / f"PM_{layer}"


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the pseudo masks of all training patches, their contact sheet and their scores.

    Masks that an earlier start of the same job has written are not made again, unless the patch or
    the weights of the classifier have changed since.

    In `workdir`: `train_PM/PM_<layer>/<stem>.png`, `contact_sheet.png` and, where the data set has
    validation masks, `scores.json` / `.csv`: the same rules on the validation patches, whose labels
    come from their true masks.
    """
    classifier = phase1.load(config.phase1, "phase1")
    runs.inherit_data(config.data, classifier.config.data)
    parallel.check_batch_size(config.batch_size)
    dataset = classifier.dataset
    source = sources.open_source(config.data, dataset, "train")
    validation = None
    if folders.has_masks(config.data.root, "val"):
        validation = sources.open_source(config.data, dataset, "val")
    runs.check(config, workdir, started=(workdir / FOLDER).is_dir())
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        runs.save(config, dataset, workdir)
        for layer in config.layers:
            layer_dir(workdir, layer).mkdir(parents=True, exist_ok=True)
            clear_unfinished(layer_dir(workdir, layer))
        _remove_stale_masks(config, classifier, source.records, workdir)
    parallel.wait_for_all("made the folders")

    open_batch = _opener(config, classifier)
    rest = _Rest(source, config, workdir)
    with ThreadPoolExecutor(WRITERS) as pool, _progress(rest) as progress:
        pending: list[Future] = []
        for batch in _own_batches(config, rest):
            label_maps = open_batch(classifier.variables, batch)
            _wait(pending)  # for the batch before: no more than two are in memory
            pending = []
            for row in range(int(batch["weight"].sum())):
                name = source.names[int(batch["index"][row])]
                for layer, maps in label_maps.items():
                    path = layer_dir(workdir, layer) / f"{name}.png"
                    pending.append(pool.submit(patch_files.write_mask, path, maps[row], dataset))
                progress.update()
        _wait(pending)
    parallel.wait_for_all("wrote the masks")
    sheet = _sheet(config, workdir, source, dataset) if parallel.is_first() else []
    if sheet:
        path = workdir / "contact_sheet.png"
        palette = colors.for_pictures(dataset, config.palette).palette
        figures.contact_sheet(sheet, palette, dataset.classes, path)
    if validation is not None:
        _score(config, classifier, open_batch, validation, workdir)


def _opener(config: ml_collections.ConfigDict, classifier: training.Trained) -> Open:
    """Label maps of batches: activation maps over the local devices, white background here."""
    dataset = classifier.dataset

    def label_maps(variables: training.Variables, batch: sources.Batch) -> dict[str, jax.Array]:
        image = pixels.scale(batch["image"], classifier.config.model)
        maps, _ = cam.grad_cam(classifier.model, variables, image, tuple(config.layers))
        arguments = batch["label"], image.shape[1:3]
        return {
            layer: masks.label_maps(of_layer, *arguments, absent=config.absent)
            for layer, of_layer in maps.items()
        }

    mapped = parallel.map_batch(label_maps)

    def open_batch(variables: training.Variables, batch: sources.Batch) -> dict[str, np.ndarray]:
        found = mapped(variables, batch)
        if not dataset.white:
            return found
        rule = config.white_threshold, config.white_min_area
        white = np.stack([masks.white_background(image, *rule) for image in batch["image"]])
        excluded = np.uint8(dataset.excluded)
        return {layer: np.where(white, excluded, maps) for layer, maps in found.items()}

    return open_batch


def _remove_stale_masks(
    config: ml_collections.ConfigDict,
    classifier: training.Trained,
    records: Sequence[PatchRecord],
    workdir: Path,
) -> None:
    """Removes the masks of other weights, such as before further training, or of other patches.

    What was made of them goes first: a start that is interrupted leaves no scores of other masks.
    """
    checksum = 0
    for leaf in jax.tree.leaves(classifier.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    stamp, text = workdir / FOLDER / "classifier.txt", f"CRC-32 of the weights: {checksum:08x}\n"
    before = patch_records.load(workdir)
    before = records if before is None else before
    same_weights = stamp.is_file() and stamp.read_bytes() == text.encode()
    kept = set(records) if same_weights else set()
    stale = {record.name for record in before if record not in kept}
    if not same_weights:
        stale |= {record.name for record in records}
    for name in _RESULTS if stale else ():
        (workdir / name).unlink(missing_ok=True)
    for layer in config.layers:
        for name in stale:
            (layer_dir(workdir, layer) / f"{name}.png").unlink(missing_ok=True)
    # What was removed is on record until here, so that a killed start is made up for.
    patch_records.save(records, workdir)
    if not same_weights:
        with atomic_path(stamp) as path:
            path.write_text(text)


class _Rest:
    """This process's patches of a source that lack a mask; `own` counts those that have one too.

    Whose a patch is does not depend on what is finished: processes look at different moments.
    """

    def __init__(self, source: sources.Source, config: ml_collections.ConfigDict, workdir: Path):
        there = [
            {path.stem for path in layer_dir(workdir, layer).glob("*.png")}
            for layer in config.layers
        ]
        finished = set.intersection(*there)
        own = range(len(source))[jax.process_index() :: jax.process_count()]
        self.own = len(own)
        self._source = source
        self._indices = [i for i in own if source.names[i] not in finished]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> sources.Batch:
        return self._source[self._indices[position]]


def _sheet(
    config: ml_collections.ConfigDict, workdir: Path, source: sources.Source, dataset: Dataset
) -> list[figures.SheetRow]:
    """A sample of patches with their masks."""
    rng = np.random.default_rng(config.seed)
    count = min(config.sheet_patches, len(source))
    rows = []
    for index in sorted(rng.choice(len(source), count, replace=False)):
        name, patch = source.names[index], source[index]
        found = {
            layer: patch_files.read_mask(layer_dir(workdir, layer) / f"{name}.png", dataset, None)
            for layer in config.layers
        }
        rows.append(figures.SheetRow(name, patch["image"], found, label=patch["label"]))
    return rows


def _own_batches(config: ml_collections.ConfigDict, rest: _Rest) -> Iterable[sources.Batch]:
    """Batches of this process alone, however many the others have."""
    if not len(rest):
        return ()
    size = config.batch_size // jax.process_count()
    return inputs.read_batches(rest, size, workers=config.data.workers, shared=False)


def _progress(rest: _Rest) -> tqdm:
    done = rest.own - len(rest)
    return show_progress(
        total=rest.own,
        initial=done,
        unit="patch",
    )


def _wait(pending: list[Future]) -> None:
    for future in pending:
        future.result()


def _score(
    config: ml_collections.ConfigDict,
    classifier: training.Trained,
    open_batch: Open,
    source: sources.Source,
    workdir: Path,
) -> None:
    """Scores the masks that the same rules give to the validation patches."""
    classes = classifier.dataset.classes

    def count(batch: sources.Batch) -> dict[str, np.ndarray]:
        truth = batch["masks"][:, 0]
        return {
            layer: np.asarray(metrics.confusion_matrices(truth, maps, len(classes)))
            for layer, maps in open_batch(classifier.variables, batch).items()
        }

    counts = inputs.map_patches(source, config.batch_size, count)
    rows = [
        (layer, metrics.segmentation_scores(counts[layer].sum(axis=0, dtype=np.int64)))
        for layer in config.layers
    ]
    if not parallel.is_first():
        return
    print("pseudo masks of the validation patches")
    print(tables.format_table(rows, classes))
    path = workdir / "scores.json"
    tables.write_scores(path, path.with_suffix(".csv"), rows, classes, {"split": "val"})
