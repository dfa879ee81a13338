"""The trained networks as one program that gives the probabilities of tiles."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from wsss_jax import __version__, checkpoints, parallel, runs
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.methods.gate import Gate
from wsss_jax.methods.prediction import Prediction
from wsss_jax.slides.mapping import provenance, stitching
from wsss_jax.slides.mapping.provenance import Origin
from wsss_jax.training.task import DeviceBatch
from wsss_jax.training.trained import Trained, bind, load_trained

CHECKSUMS = "networks.json"  # in the workdir: with it `prepare` need not load the networks


class Networks(NamedTuple):
    """The networks that segment tiles.

    Attributes:
      predict: see `stitching.Predict`; batches are divided among the local devices.
      checksums: of weights and settings, by phase, as hexadecimal text.
      origins: where they come from, by phase.
      gate: the two networks apart, of which `predict` is made, if the gate has windows of its own.
    """

    predict: stitching.Predict
    checksums: dict[str, str]
    origins: Mapping[str, Origin] = {}
    gate: stitching.SharedGate | None = None


class NetworksChanged(InputError):
    """The networks changed after the maps of this job were begun."""


def load(config: ml_collections.ConfigDict) -> Networks:
    """Loads the networks of a complete configuration onto the local devices.

    Raises:
      InputError: no checkpoint, or a batch size that the devices cannot share.
    """
    parallel.check_batch_size(config.batch_size)
    how = config.precision, config.tta
    loaded = {"phase2": load_trained(config.phase2, "phase2", "logits", *how)}
    if config.phase1:
        loaded["phase1"] = load_trained(config.phase1, "phase1", "presence", *how)
    is_shared = bool(config.phase1 and config.gate.stride)
    built = build(loaded, Gate.of(config.gate), is_shared=is_shared)
    return built._replace(origins=provenance.read_origins(config))


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> Networks:
    """Prepares the networks; if the workdir knows their checksums, the first tiles load them.

    A slide that is finished then waits for no network. `workdir/networks.json` keeps the checksums
    with a stamp of the run's files, which shows that a run is unchanged. If the checksums differ
    once the networks are loaded, `predict` raises `NetworksChanged`.
    """
    parallel.check_batch_size(config.batch_size)
    phases = [phase for phase in provenance.PHASES if config[phase]]
    stamps = {phase: _make_stamp(Path(config[phase]), config.precision) for phase in phases}
    known = _read_checksums(workdir / CHECKSUMS)
    if all(known.get(phase, {}).get("stamp") == stamp for phase, stamp in stamps.items()):
        checksums = {phase: known[phase]["checksum"] for phase in stamps}
        when_needed = _load_when_needed(config, checksums, workdir)
        return when_needed._replace(origins=provenance.read_origins(config))
    loaded = load(config)
    if loaded.checksums.keys() == stamps.keys():
        for phase, checksum in loaded.checksums.items():
            known[phase] = {"stamp": stamps[phase], "checksum": checksum}
        with atomic_path(workdir / CHECKSUMS) as path:
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    return loaded


def _load_when_needed(
    config: ml_collections.ConfigDict, checksums: dict[str, str], workdir: Path
) -> Networks:
    """Makes networks that are loaded with the first tiles, and then checks their checksums.

    If they differ, it removes the file of checksums, so that the next start loads networks first.
    """

    @lru_cache
    def load_once() -> Networks:
        now = load(config)
        changed = [name for name in checksums if now.checksums.get(name) != checksums[name]]
        if changed:
            (workdir / CHECKSUMS).unlink(missing_ok=True)
            raise NetworksChanged(
                f"{' and '.join(config[name] for name in changed)}: the weights are not those "
                f"that {workdir / CHECKSUMS} knew; check that no training still writes them, "
                "then give the same command again"
            )
        return now

    def load_gate() -> stitching.SharedGate:
        gate = load_once().gate
        assert gate is not None  # the networks of this configuration have one
        return gate

    gate = None
    if config.phase1 and config.gate.stride:
        gate = stitching.SharedGate(
            lambda images: load_gate().classify(images),
            lambda images, presence: load_gate().segment(images, presence),
        )
    return Networks(lambda images: load_once().predict(images), checksums, gate=gate)


def _read_checksums(path: Path) -> dict[str, dict[str, str]]:
    """Reads the checksums of an earlier start; none if the file holds something else."""
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    entries = known.values() if isinstance(known, dict) else [None]
    is_valid = all(isinstance(e, dict) and {"stamp", "checksum"} <= e.keys() for e in entries)
    return known if is_valid else {}


def _make_stamp(workdir: Path, precision: str) -> str:
    """Returns a text that changes if the network of a run may have changed; reads no weights."""
    digest = hashlib.sha256(f"{__version__} {precision}".encode())
    for name in (config_lib.CONFIG_FILE, runs.DATASET_FILE):
        digest.update((workdir / name).read_bytes())
    for path in sorted((workdir / checkpoints.FOLDER).rglob("*")):
        state = path.stat()
        line = f"{path.relative_to(workdir)} {state.st_size} {state.st_mtime_ns}\n"
        digest.update(line.encode(errors="replace"))
    return digest.hexdigest()


def build(
    loaded: Mapping[str, Trained], gate: Gate, *, is_shared: bool = False, fold: bool = True
) -> Networks:
    """Makes mapped programs of trained networks: one of both, or one of each.

    Args:
      loaded: "phase2", which must give logits, and for the gate "phase1", which must give presence.
      gate: which classes phase 1 closes.
      is_shared: whether the gate has windows of its own, so that the networks run apart.
      fold: whether normalizations are folded into convolutions, see `Trained.fold`.
    """
    checksums = {phase: _compute_checksum(trained) for phase, trained in loaded.items()}
    if fold:
        loaded = {phase: trained.fold() for phase, trained in loaded.items()}

    def combine(predictions: dict[str, Prediction], batch: DeviceBatch) -> jax.Array:
        logits = predictions["phase2"].logits
        if logits is None:
            raise ValueError("the network of phase 2 gives no logits")
        if "phase1" in predictions:
            return gate.probabilities(logits, _get_presence(predictions, batch))
        if "presence" in batch:
            return gate.probabilities(logits, batch["presence"])
        return jax.nn.softmax(logits)

    if not is_shared:
        predictor = bind(loaded, combine, wait=False)
        return Networks(lambda images: predictor({"image": images}), checksums)
    classifier = bind({"phase1": loaded["phase1"]}, _get_presence, wait=False)
    segmenter = bind({"phase2": loaded["phase2"]}, combine, wait=False)

    def classify(images: np.ndarray) -> parallel.PendingArray:
        return classifier({"image": images})

    def segment(images: np.ndarray, presence: np.ndarray) -> parallel.PendingArray:
        return segmenter({"image": images, "presence": presence})

    def predict(images: np.ndarray) -> parallel.PendingArray:
        return segment(images, np.asarray(classify(images)))

    return Networks(predict, checksums, gate=stitching.SharedGate(classify, segment))


def _get_presence(predictions: dict[str, Prediction], batch: DeviceBatch) -> jax.Array:
    """Returns the probabilities of classes, (B, C) float32."""
    presence = predictions["phase1"].presence
    if presence is None:
        raise ValueError("the network of phase 1 gives no probabilities of classes")
    return presence


def _compute_checksum(trained: Trained) -> str:
    # Without fields of later versions that do what was done before them: maps that were made by a
    # run of those days are still its maps.
    config = config_lib.drop_later_fields(trained.config)
    settings = {
        "model": config["model"],
        "precision": config["precision"],
        "pda": config.get("pda"),
        "classes": trained.dataset.classes,
    }
    checksum = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
    for leaf in jax.tree.leaves(trained.variables):
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return f"{checksum:08x}"
