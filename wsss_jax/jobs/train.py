"""Trains a method: the job of that method's name."""

from pathlib import Path

import ml_collections
from tqdm import tqdm

from data import folders
from data.dataset import Dataset, load_dataset
from wsss_jax import (
    clusters,
    composites,
    convolution_table,
    inputs,
    mask_folders,
    parallel,
    runs,
)
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.methods.contract import load_method
from wsss_jax.report import figures
from wsss_jax.sources import open_source
from wsss_jax.training import calibration, loop
from wsss_jax.training.measurement import measure
from wsss_jax.training.patches import Patches
from wsss_jax.training.validation import make_validation

SHARED = True


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains the method that the job is named after, on patches with labels or on masks.

    A method whose configuration has `masks` learns from those of an earlier run, or of a folder,
    one that has `clusters` also from those.
    """
    config, dataset, mask_dirs = complete(config)
    left_out = mask_folders.list_left_out(Path(config.masks)) if mask_dirs else ()
    source = open_source(config.data, dataset, "train", mask_dirs, left_out)
    source = clusters.extend(source, config, dataset)
    source = composites.compose(source, config, dataset.num_classes)
    parallel.check_batch_size(config.batch_size, config.accumulate)
    advice = parallel.advise_batch_size(config.batch_size, config.accumulate)
    if advice and config.precision == "bfloat16" and parallel.is_first():
        tqdm.write(advice)
    validation = validate = None
    if folders.has_split(config.data.root, "val"):
        validation = open_source(config.data, dataset, "val")
    steps = inputs.count_steps(len(source), config.batch_size, config.drop_last)
    method = load_method(config.job)
    config = convolution_table.take_up(config, workdir)
    config = measure(config, workdir, method, source)
    task = method.make_task(config, dataset.num_classes, config.epochs * steps)
    if validation is not None:
        validate = make_validation(config, dataset.num_classes, validation)
    patches = Patches(dataset, source, validation)
    calibration.clear(workdir)
    history = loop.fit(config, workdir, task, patches, validate)
    calibration.calibrate(config, workdir, dataset, validation)
    if parallel.is_first():
        figures.write_training_curves(workdir / "curves.png", history, dataset.classes)


def complete(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.FrozenConfigDict, Dataset, list[Path]]:
    """Completes the configuration by what the method and an earlier run decide.

    Returns:
      The configuration, the data set, and the folders of masks to learn from, one for each layer.

    Raises:
      InputError: fields that contradict each other, or no such run or data set.
    """
    config = config_lib.thaw(config)
    mask_dirs: list[Path] = []
    if config.get("clusters"):
        dataset = clusters.complete(config)
    elif "masks" not in config:
        dataset = _open_dataset(config.data)
    else:
        path = Path(config.masks)
        is_folder_of_masks = path.is_dir() and folders.find_pngs(path)
        if (path / config_lib.CONFIG_FILE).is_file() or not is_folder_of_masks:
            earlier, dataset = runs.load(config.masks, "masks", ("masks", "relabel"))
            _check_layers(config, earlier)
            config.data = runs.inherit_data(config.data, earlier.data)
            mask_dirs = [runs.layer_dir(path, layer) for layer in config.layers]
        else:  # a folder of masks, such as true ones
            dataset = _open_dataset(config.data)
            mask_dirs = [path] * len(config.layers)
    load_method(config.job).complete(config, dataset)
    return config_lib.freeze(config), dataset, mask_dirs


def _check_layers(
    config: ml_collections.ConfigDict, earlier: ml_collections.FrozenConfigDict
) -> None:
    """Refuses layers of which the earlier run has no masks."""
    layers = tuple(earlier.get("layers", (runs.RELABELED,)))
    if missing := [layer for layer in config.layers if layer not in layers]:
        raise InputError(
            f"config.layers names {', '.join(missing)}, but {config.masks} has masks of "
            f'{", ".join(layers)}: set --config.layers="{layers}" and as many '
            "--config.layer_weights, or name other --config.masks"
        )


def _open_dataset(data: ml_collections.ConfigDict) -> Dataset:
    """Loads the data set; sets the size of its patches where the configuration leaves it open."""
    if not data.root:
        raise InputError("config.data.root is empty: set --config.data.root")
    dataset = load_dataset(data.dataset, data.root)
    if not data.patch_size:
        if data.resize:
            raise InputError(
                "config.data.resize is True but config.data.patch_size is 0: set "
                "--config.data.patch_size to the size that patches are brought to"
            )
        data.patch_size = folders.measure_patch(data.root)
    return dataset
