"""Folders of pseudo masks: made by a trained run, resumed, and removed where they are stale.

In a workdir, `train_PM/PM_<layer>/<stem>.png` are the masks of a layer. A patch may also be left
out of training, by the rule of a job: its mask is then in `train_PM/left_out`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from data import folders, patch_files
from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import inputs, masks, metrics, parallel, patch_records, runs
from wsss_jax.files import atomic_path
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables
from wsss_jax.sources import Batch, Source, open_source
from wsss_jax.training.trained import Trained

WRITERS = 8  # threads; PNG encoding releases the interpreter lock
_RESULTS = "scores.json", "scores.csv", "contact_sheet.png"  # made of the masks
_STAMP = "classifier.txt"  # beside the masks: what they are made with

# batch -> {layer: label maps (B, H, W) uint8}
Open = Callable[[Batch], dict[str, np.ndarray]]


class Patches(NamedTuple):
    """The patches to make masks of, and those by which masks are scored, if they have true ones."""

    dataset: Dataset
    training: Source
    validation: Source | None


class Maker(NamedTuple):
    """What makes masks.

    Attributes:
      layers: names of its masks.
      open_batch: gives them, for a batch of which it gets "image" and "label".
      is_kept: (mask (H, W) uint8, label (C,) uint8) -> whether the patch is trained on; it needs a
        single layer.
    """

    layers: Sequence[str]
    open_batch: Open
    is_kept: Callable[[np.ndarray, np.ndarray], bool] = lambda mask, label: True


def open_patches(
    config: ml_collections.ConfigDict, trained: Trained
) -> tuple[ml_collections.FrozenConfigDict, Patches]:
    """Opens the patches of the run that makes masks; completes the configuration by its data."""
    data = runs.inherit_data(config.data, trained.config.data)
    config, dataset = config_lib.replace(config, data=data), trained.dataset
    parallel.check_batch_size(config.batch_size)
    training = open_source(config.data, dataset, "train")
    validation = None
    if folders.has_masks(config.data.root, "val"):
        validation = open_source(config.data, dataset, "val")
    return config, Patches(dataset, training, validation)


def prepare(
    config: ml_collections.ConfigDict,
    workdir: Path,
    trained: Trained,
    records: Sequence[PatchRecord],
    layers: Sequence[str],
) -> None:
    """Makes the folders, and removes masks of another classifier or patches than there are now.

    Args:
      config: of the job, complete.
      workdir: of the job.
      trained: what the masks are made with.
      records: of the patches.
      layers: of the masks.

    Raises:
      InputError: the workdir holds masks of other settings.
    """
    runs.check(config, workdir, started=(workdir / runs.PSEUDO_MASKS).is_dir())
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        runs.save(config, trained.dataset, workdir)
        for folder in _list_folders(workdir, layers):
            folder.mkdir(parents=True, exist_ok=True)
        _remove_stale_masks(workdir, trained, records, layers)
    parallel.wait_for_all("made the folders")


def sort_again(
    workdir: Path, dataset: Dataset, records: Sequence[PatchRecord], maker: Maker
) -> None:
    """Sorts the masks that there are by the rule of `maker`, which may be another than before.

    Idempotent, so that a start that was interrupted, in whichever state, does not matter.

    Args:
      workdir: of the job, after `prepare`.
      dataset: of the patches.
      records: of the patches.
      maker: of a single layer.
    """
    (layer,) = maker.layers
    kept, left_out = runs.layer_dir(workdir, layer), runs.left_out_dir(workdir)
    labels = {record.name: np.array(record.label.split(), np.uint8) for record in records}

    def sort(path: Path) -> None:
        mask = patch_files.read_mask(path, dataset, None)
        folder = kept if maker.is_kept(mask, labels[path.stem]) else left_out
        if folder != path.parent:
            folder.mkdir(exist_ok=True)
            path.replace(folder / path.name)

    there = [path for folder in (kept, left_out) for path in folder.glob("*.png")]
    with ThreadPoolExecutor(WRITERS) as pool:
        wait_for([pool.submit(sort, path) for path in there if path.stem in labels])


def make_masks(
    config: ml_collections.ConfigDict, workdir: Path, patches: Patches, maker: Maker
) -> None:
    """Writes the masks that are missing, a contact sheet, and the scores of the same rules.

    In `workdir`: the masks, `contact_sheet.png` and, where there are validation patches with true
    masks, `scores.json` / `.csv`; the labels of these patches come from their true masks.
    """
    _write_masks(config, workdir, patches, maker)
    parallel.wait_for_all("wrote the masks")
    if config.sheet_patches and parallel.is_first():
        _write_sheet(config, workdir, patches, maker.layers)
    if patches.validation is not None:
        _write_scores(config, patches.dataset.classes, maker, patches.validation, workdir)


def exclude_white(
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    image: np.ndarray,
    by_layer: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Excludes white background, where the data set has it, from label maps.

    Args:
      config: `white_threshold` and `white_min_area` are the rule.
      dataset: of the patches.
      image: (B, H, W, 3) uint8.
      by_layer: label maps (B, H, W) uint8, by layer.

    Returns:
      Label maps with C where an image is white, by layer.
    """
    if not dataset.white:
        return by_layer
    rule = masks.WhiteRule(config.white_threshold, config.white_min_area)
    white = np.stack([masks.find_white_background(each, rule) for each in image])
    excluded = np.uint8(dataset.excluded)
    return {layer: np.where(white, excluded, maps) for layer, maps in by_layer.items()}


def list_finished(workdir: Path, layers: Sequence[str]) -> set[str]:
    """Lists the patches that have masks of all layers."""
    return set.intersection(*map(_list_stems, _list_folders(workdir, layers)))


def list_left_out(workdir: Path) -> set[str]:
    """Lists the patches that are not trained on."""
    return _list_stems(runs.left_out_dir(workdir))


def wait_for(pending: Iterable[Future]) -> None:
    """Waits for work that was handed to threads, and raises what went wrong in it."""
    for future in pending:
        future.result()


def _list_folders(workdir: Path, layers: Sequence[str]) -> list[Path]:
    return [runs.layer_dir(workdir, layer) for layer in layers]


def _list_stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def _remove_stale_masks(
    workdir: Path, trained: Trained, records: Sequence[PatchRecord], layers: Sequence[str]
) -> None:
    """Removes masks of another classifier, such as before further training, or of other patches.

    What was made of them goes first: a start that is interrupted leaves no scores of other masks.
    """
    stamp = workdir / runs.PSEUDO_MASKS / _STAMP
    text = trained.describe_activations()
    recorded = patch_records.load(workdir)
    before = records if recorded is None else recorded
    same = stamp.is_file() and stamp.read_bytes() == text.encode()
    kept = set(records) if same else set()
    stale = {record.name for record in before if record not in kept}
    if not same:
        stale |= {record.name for record in records}
    for name in _RESULTS if stale else ():
        (workdir / name).unlink(missing_ok=True)
    for folder in (*_list_folders(workdir, layers), runs.left_out_dir(workdir)):
        for name in stale:
            (folder / f"{name}.png").unlink(missing_ok=True)
    # What was removed is on record until here, so that a killed start is made up for.
    patch_records.save(records, workdir)
    if not same:
        with atomic_path(stamp) as path:
            path.write_text(text)


def _write_masks(
    config: ml_collections.ConfigDict, workdir: Path, patches: Patches, maker: Maker
) -> None:
    """Writes the masks of this process's patches that lack one."""
    source, dataset = patches.training, patches.dataset
    finished = list_finished(workdir, maker.layers) | list_left_out(workdir)
    unfinished = _Unfinished(source, finished)
    done = unfinished.own - len(unfinished)
    with (
        ThreadPoolExecutor(WRITERS) as pool,
        show_progress(total=unfinished.own, initial=done, unit="patch") as bar,
    ):
        pending: list[Future] = []
        for batch in _own_batches(config, unfinished):
            label_maps = _open(maker, batch)
            wait_for(pending)  # of the batch before: no more than two are in memory
            pending = []
            for row in range(int(batch["weight"].sum())):
                name, label = source.names[int(batch["index"][row])], batch["label"][row]
                for layer, maps in label_maps.items():
                    folder = runs.layer_dir(workdir, layer)
                    if not maker.is_kept(maps[row], label):
                        folder = runs.left_out_dir(workdir)
                        folder.mkdir(exist_ok=True)
                    path = folder / f"{name}.png"
                    pending.append(pool.submit(patch_files.write_mask, path, maps[row], dataset))
                bar.update()
        wait_for(pending)


class _Unfinished:
    """This process's patches of a source that are not finished; `own` counts those that are, too.

    Which process a patch belongs to does not depend on what is finished: processes look at
    different moments.
    """

    def __init__(self, source: Source, finished: Collection[str]):
        own = range(len(source))[jax.process_index() :: jax.process_count()]
        self.own = len(own)
        self._source = source
        self._indices = [i for i in own if source.names[i] not in finished]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Batch:
        return self._source[self._indices[position]]


def _own_batches(config: ml_collections.ConfigDict, unfinished: _Unfinished) -> Iterable[Batch]:
    """Reads batches of this process alone, however many the others have."""
    if not len(unfinished):
        return ()
    size = config.batch_size // jax.process_count()
    return inputs.read_batches(unfinished, size, workers=config.data.workers, shared=False)


def _write_sheet(
    config: ml_collections.ConfigDict, workdir: Path, patches: Patches, layers: Sequence[str]
) -> None:
    """Writes a contact sheet of a sample of the patches that are trained on, with their masks."""
    source, dataset = patches.training, patches.dataset
    finished = list_finished(workdir, layers)
    indices = [index for index, name in enumerate(source.names) if name in finished]
    if not indices:
        return
    rng = np.random.default_rng(config.seed)
    count = min(config.sheet_patches, len(indices))
    rows = []
    for index in sorted(rng.choice(indices, count, replace=False)):
        name, patch = source.names[index], source[index]
        by_layer = {
            layer: patch_files.read_mask(
                runs.layer_dir(workdir, layer) / f"{name}.png", dataset, None
            )
            for layer in layers
        }
        rows.append(figures.SheetRow(name, patch["image"], by_layer, label=patch["label"].tolist()))
    legend = colors.make_legend(dataset, config.palette)
    figures.write_contact_sheet(workdir / "contact_sheet.png", rows, legend)


def _open(maker: Maker, batch: Batch) -> dict[str, np.ndarray]:
    """Gives the label maps; validation batches, which have masks, share the training's program."""
    return maker.open_batch({name: batch[name] for name in ("image", "label")})


def _write_scores(
    config: ml_collections.ConfigDict,
    classes: Sequence[str],
    maker: Maker,
    source: Source,
    workdir: Path,
) -> None:
    """Scores the masks that the same rules give to the validation patches."""

    def count(batch: Batch) -> dict[str, np.ndarray]:
        truth = batch["masks"][:, 0]
        return {
            layer: np.asarray(metrics.confusion_matrices(truth, maps, len(classes)))
            for layer, maps in _open(maker, batch).items()
        }

    counts = inputs.map_patches(source, config.batch_size, count)
    rows = [
        (layer, metrics.segmentation_scores(counts[layer].sum(axis=0, dtype=np.int64)))
        for layer in maker.layers
    ]
    if not parallel.is_first():
        return
    print("pseudo masks of the validation patches")
    print(tables.format_table(rows, classes))
    path = workdir / "scores.json"
    tables.write_scores(path, path.with_suffix(".csv"), rows, classes, {"split": "val"})
