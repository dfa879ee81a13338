"""Opens a trained classifier into pseudo masks of several layers."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import ml_collections
import numpy as np

from data import folders, patch_files
from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax import inputs, masks, metrics, parallel, patch_records, runs
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path, clear_unfinished
from wsss_jax.patch_records import PatchRecord
from wsss_jax.progress import show_progress
from wsss_jax.report import colors, figures, tables
from wsss_jax.sources import Batch, Source, open_source
from wsss_jax.training.task import DeviceBatch, Variables
from wsss_jax.training.trained import Trained, load_trained

SHARED = True
FIELDS = {
    **rules.DATA,
    "phase1": rules.NAME,
    "layers": rules.sequence(rules.LAYER),
    "absent": rules.one_of("excluded", "zero"),
    "white_threshold": rules.integer(0, 255),
    "white_min_area": rules.integer(0, rules.MOST_PIXELS**2),
    "tta": rules.TTA,
    "batch_size": rules.integer(1, rules.MOST_EXAMPLES),
    "palette": rules.added(rules.PALETTE, "dataset"),
    "sheet_patches": rules.integer(0, 1000),
    "seed": rules.SEED,
}
WRITERS = 8  # threads; PNG encoding releases the interpreter lock
_RESULTS = "scores.json", "scores.csv", "contact_sheet.png"  # made of the masks
_STAMP = "classifier.txt"  # beside the masks: which weights they are of

# batch -> {layer: label maps (B, H, W) uint8}
Open = Callable[[Batch], dict[str, np.ndarray]]


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses a configuration without layers; see `config.validate`."""
    if not config.layers:
        raise InputError(f"{prefix}layers is empty: name at least one layer")


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the pseudo masks of all training patches, their contact sheet and their scores.

    Masks that an earlier start of the same job has written are not made again, unless the patch or
    the weights of the classifier have changed since.

    In `workdir`: `train_PM/PM_<layer>/<stem>.png`, `contact_sheet.png` and, where the data set has
    validation masks, `scores.json` / `.csv`: the same rules on the validation patches, whose labels
    come from their true masks.
    """
    classifier = load_trained(config.phase1, "phase1", "activations", tta=config.tta)
    data = runs.inherit_data(config.data, classifier.config.data)
    config, dataset = config_lib.replace(config, data=data), classifier.dataset
    parallel.check_batch_size(config.batch_size)
    source = open_source(config.data, dataset, "train")
    validation = None
    if folders.has_masks(config.data.root, "val"):
        validation = open_source(config.data, dataset, "val")
    runs.check(config, workdir, started=(workdir / runs.PSEUDO_MASKS).is_dir())
    parallel.wait_for_all("looked at the workdir")
    if parallel.is_first():
        runs.save(config, dataset, workdir)
        for layer in config.layers:
            runs.layer_dir(workdir, layer).mkdir(parents=True, exist_ok=True)
            clear_unfinished(runs.layer_dir(workdir, layer))
        _remove_stale_masks(config, classifier, source.records, workdir)
    parallel.wait_for_all("made the folders")

    open_batch = make_opener(config, classifier)
    _write_masks(config, workdir, source, dataset, open_batch)
    parallel.wait_for_all("wrote the masks")
    if config.sheet_patches and parallel.is_first():
        _write_sheet(config, workdir, source, dataset)
    if validation is not None:
        _write_scores(config, dataset.classes, open_batch, validation, workdir)


def make_opener(config: ml_collections.ConfigDict, classifier: Trained) -> Open:
    """Makes a function that gives the label maps of batches.

    Activation maps are computed over the local devices, white background is found on the host.
    """
    dataset = classifier.dataset

    def label_maps(variables: Variables, batch: DeviceBatch) -> dict[str, jax.Array]:
        image, label = batch["image"], batch["label"]
        maps = classifier.open_layers(variables, image, config.layers)
        size = image.shape[1:3]
        return {
            layer: masks.label_maps(of_layer, label, size, absent=config.absent)
            for layer, of_layer in maps.items()
        }

    mapped = parallel.map_batch(label_maps)

    def open_batch(batch: Batch) -> dict[str, np.ndarray]:
        by_layer = mapped(classifier.variables, batch)
        if not dataset.white:
            return by_layer
        rule = masks.WhiteRule(config.white_threshold, config.white_min_area)
        white = np.stack([masks.find_white_background(image, rule) for image in batch["image"]])
        excluded = np.uint8(dataset.excluded)
        return {layer: np.where(white, excluded, maps) for layer, maps in by_layer.items()}

    return open_batch


def _write_masks(
    config: ml_collections.ConfigDict,
    workdir: Path,
    source: Source,
    dataset: Dataset,
    open_batch: Open,
) -> None:
    """Writes the masks of this process's patches that lack one."""
    unfinished = _Unfinished(source, config, workdir)
    done = unfinished.own - len(unfinished)
    with (
        ThreadPoolExecutor(WRITERS) as pool,
        show_progress(total=unfinished.own, initial=done, unit="patch") as bar,
    ):
        pending: list[Future] = []
        for batch in _own_batches(config, unfinished):
            label_maps = open_batch(batch)
            wait_for(pending)  # of the batch before: no more than two are in memory
            pending = []
            for row in range(int(batch["weight"].sum())):
                name = source.names[int(batch["index"][row])]
                for layer, maps in label_maps.items():
                    path = runs.layer_dir(workdir, layer) / f"{name}.png"
                    pending.append(pool.submit(patch_files.write_mask, path, maps[row], dataset))
                bar.update()
        wait_for(pending)


def wait_for(pending: Iterable[Future]) -> None:
    """Waits for work that was handed to threads, and raises what went wrong in it."""
    for future in pending:
        future.result()


def _remove_stale_masks(
    config: ml_collections.ConfigDict,
    classifier: Trained,
    records: Sequence[PatchRecord],
    workdir: Path,
) -> None:
    """Removes the masks of other weights, such as before further training, or of other patches.

    What was made of them goes first: a start that is interrupted leaves no scores of other masks.
    """
    checksum = 0
    for leaf in jax.tree.leaves(classifier.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    stamp = workdir / runs.PSEUDO_MASKS / _STAMP
    text = f"CRC-32 of the weights: {checksum:08x}\n"
    recorded = patch_records.load(workdir)
    before = records if recorded is None else recorded
    same_weights = stamp.is_file() and stamp.read_bytes() == text.encode()
    kept = set(records) if same_weights else set()
    stale = {record.name for record in before if record not in kept}
    if not same_weights:
        stale |= {record.name for record in records}
    for name in _RESULTS if stale else ():
        (workdir / name).unlink(missing_ok=True)
    for layer in config.layers:
        for name in stale:
            (runs.layer_dir(workdir, layer) / f"{name}.png").unlink(missing_ok=True)
    # What was removed is on record until here, so that a killed start is made up for.
    patch_records.save(records, workdir)
    if not same_weights:
        with atomic_path(stamp) as path:
            path.write_text(text)


class _Unfinished:
    """This process's patches of a source that lack a mask; `own` counts those that have one too.

    Which process a patch belongs to does not depend on what is finished: processes look at
    different moments.
    """

    def __init__(self, source: Source, config: ml_collections.ConfigDict, workdir: Path):
        finished = set.intersection(
            *(
                {path.stem for path in runs.layer_dir(workdir, layer).glob("*.png")}
                for layer in config.layers
            )
        )
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
    config: ml_collections.ConfigDict, workdir: Path, source: Source, dataset: Dataset
) -> None:
    """Writes a contact sheet of a sample of patches with their masks."""
    rng = np.random.default_rng(config.seed)
    count = min(config.sheet_patches, len(source))
    rows = []
    for index in sorted(rng.choice(len(source), count, replace=False)):
        name, patch = source.names[index], source[index]
        by_layer = {
            layer: patch_files.read_mask(
                runs.layer_dir(workdir, layer) / f"{name}.png", dataset, None
            )
            for layer in config.layers
        }
        rows.append(figures.SheetRow(name, patch["image"], by_layer, label=patch["label"].tolist()))
    legend = colors.make_legend(dataset, config.palette)
    figures.write_contact_sheet(workdir / "contact_sheet.png", rows, legend)


def _write_scores(
    config: ml_collections.ConfigDict,
    classes: Sequence[str],
    open_batch: Open,
    source: Source,
    workdir: Path,
) -> None:
    """Scores the masks that the same rules give to the validation patches."""

    def count(batch: Batch) -> dict[str, np.ndarray]:
        truth = batch["masks"][:, 0]
        return {
            layer: np.asarray(metrics.confusion_matrices(truth, maps, len(classes)))
            for layer, maps in open_batch(batch).items()
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
