"""The trained networks as one program that gives the probabilities of tiles."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from data.dataset import Dataset
from wsss_jax import __version__, checkpoints, parallel, phase1, phase2, runs, training
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.slides.mapping import provenance, stitching
from wsss_jax.slides.mapping.provenance import Origin
from wsss_jax.slides.mapping.tiling import choose_stride

CHECKSUMS = "networks.json"  # in the workdir: what `prepare` need not load the networks for


class Networks(NamedTuple):
    """What segments tiles.

    Attributes:
      predict: see `stitching.Predict`; batches are divided among the local devices.
      checksums: of weights and settings, by phase, as hexadecimal text.
      origins: where they come from, by phase.
    """

    predict: stitching.Predict
    checksums: dict[str, str]
    origins: Mapping[str, Origin] = {}


class NetworksChanged(InputError):
    """The networks are not those that the maps of this job are said to be made with."""


class _OnItsWay:
    """(B, ...) of a mapped result, waited for when NumPy asks for it."""

    def __init__(self, sharded: jax.Array):
        sharded.copy_to_host_async()
        self._sharded = sharded

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.asarray(self._sharded)
        return whole.reshape(-1, *whole.shape[2:])


def settle(config: ml_collections.ConfigDict) -> Dataset:
    """Fills in place what the runs decide: `mpp`, `tile`, `stride`, and the gate without phase 1.

    Touches no device.

    Args:
      config: of the job "segment", or of "doctor" with `phase2` set.

    Returns:
      the data set of the runs.

    Raises:
      InputError: no such runs, of other classes, or nothing says at what resolution they learned.
    """
    earlier, dataset = runs.load(config.phase2, "phase2", "phase2")
    if not config.phase1:
        config.gate.mode = "off"
    elif config.gate.mode == "off":
        config.phase1 = ""
    else:
        _, other = runs.load(config.phase1, "phase1", "phase1")
        if other.classes != dataset.classes:
            raise InputError(
                f"config.phase1 and config.phase2 are runs with other classes ({other.classes}, "
                f"{dataset.classes}): name two of one data set"
            )
    config.tile = config.tile or earlier.data.patch_size
    config.stride = config.stride or choose_stride(config.tile)
    if config.stride > config.tile:
        raise InputError(
            f"config.stride is {config.stride}, over the tile's {config.tile}: set "
            f"--config.stride={config.tile // 2} or less"
        )
    if not config.mpp:
        # Patches that were resized are of no known resolution.
        if not dataset.mpp or earlier.data.resize:
            raise InputError(
                f"config.mpp: {config.phase2} does not say at how many micrometers per pixel it "
                "learned: set --config.mpp=1.0 for patches at 10x, 0.5 at 20x, 0.25 at 40x"
            )
        config.mpp = dataset.mpp
    return dataset


def load(config: ml_collections.ConfigDict) -> Networks:
    """The networks of a configuration that was settled, on the local devices.

    Raises:
      InputError: no checkpoint, or a batch size that the devices cannot share.
    """
    parallel.check_batch_size(config.batch_size)
    loaded = {"phase2": phase2.load(config.phase2, "phase2", config.precision)}
    if config.phase1:
        loaded["phase1"] = phase1.load(config.phase1, "phase1", config.precision)
    return build(loaded, config.gate)._replace(origins=provenance.read(config))


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> Networks:
    """As `load`, but networks whose checksums the workdir knows are loaded with the first tiles.

    So a slide that needs none waits for no network. `workdir/networks.json` keeps the checksums
    with a stamp of the run's files, by which a run is known to be unchanged. Should they be other
    ones when they are loaded, `predict` raises `NetworksChanged`.
    """
    parallel.check_batch_size(config.batch_size)
    stamps = {
        phase: _stamp(Path(config[phase]), config.precision)
        for phase in provenance.PHASES
        if config[phase]
    }
    known = _known(workdir / CHECKSUMS)
    if all(known.get(phase, {}).get("stamp") == stamp for phase, stamp in stamps.items()):
        checksums = {phase: known[phase]["checksum"] for phase in stamps}
        predict = _when_needed(config, checksums, workdir)
        return Networks(predict, checksums, provenance.read(config))
    loaded = load(config)
    if loaded.checksums.keys() == stamps.keys():
        for phase, checksum in loaded.checksums.items():
            known[phase] = {"stamp": stamps[phase], "checksum": checksum}
        with atomic_path(workdir / CHECKSUMS) as path:
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return loaded


def _when_needed(
    config: ml_collections.ConfigDict, checksums: Mapping[str, str], workdir: Path
) -> stitching.Predict:
    """Loads the networks when the first tiles are predicted, and sees that they are the same.

    If not, the workdir forgets the checksums, so that the next start loads them first.
    """
    loaded: list[Networks] = []

    def predict(images: np.ndarray) -> np.ndarray:
        if not loaded:
            found = load(config)
            other = [phase for phase in checksums if found.checksums.get(phase) != checksums[phase]]
            if other:
                (workdir / CHECKSUMS).unlink(missing_ok=True)
                raise NetworksChanged(
                    f"{' and '.join(config[phase] for phase in other)}: the weights are not those "
                    f"that {workdir / CHECKSUMS} knew; see that no training still writes them, and "
                    "give the same command again"
                )
            loaded.append(found)
        return loaded[0].predict(images)

    return predict


def _known(path: Path) -> dict[str, dict[str, str]]:
    """The checksums of an earlier start; none if the file is not ours."""
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    ours = isinstance(known, dict) and all(
        isinstance(entry, dict) and {"stamp", "checksum"} <= entry.keys()
        for entry in known.values()
    )
    return known if ours else {}


def _stamp(workdir: Path, precision: str) -> str:
    """What changes if the network of a run may have changed; reads no weights."""
    digest = hashlib.sha256(f"{__version__} {precision}".encode())
    for name in (config_lib.CONFIG_FILE, runs.DATASET_FILE):
        digest.update((workdir / name).read_bytes())
    for path in sorted((workdir / checkpoints.FOLDER).rglob("*")):
        state = path.stat()
        name = path.relative_to(workdir)
        digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def build(loaded: Mapping[str, training.Trained], gate: ml_collections.ConfigDict) -> Networks:
    """One mapped program of trained networks.

    Args:
      loaded: "phase2" and, for the gate, "phase1".
      gate: the fields `config.gate`.
    """

    def probabilities(variables: Mapping[str, Any], image: jax.Array) -> jax.Array:
        trained = loaded["phase2"]
        logits = phase2.predict(trained.config, trained.model, variables["phase2"], image)
        if "phase1" not in loaded:
            return jax.nn.softmax(logits)
        trained = loaded["phase1"]
        seen, _ = phase1.predict(trained.config, trained.model, variables["phase1"], image)
        return phase2.gated_probabilities(logits, seen, **gate.to_dict())

    mapped = jax.pmap(probabilities, parallel.AXIS, in_axes=(None, 0))
    variables = {name: trained.variables for name, trained in loaded.items()}

    def predict(images: np.ndarray) -> _OnItsWay:
        return _OnItsWay(mapped(variables, parallel.shard({"image": images})["image"]))

    return Networks(predict, {name: _checksum(trained) for name, trained in loaded.items()})


def _checksum(trained: training.Trained) -> str:
    config = trained.config
    settings = {
        "model": config.model.to_dict(),
        "precision": config.precision,
        "pda": config.pda.to_dict() if config.job == "phase1" else None,
        "classes": trained.dataset.classes,
    }
    checksum = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
    for leaf in jax.tree.leaves(trained.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return f"{checksum:08x}"
