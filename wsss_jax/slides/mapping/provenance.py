"""Where the networks of a tissue map come from: their data, resolution, training and score."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_collections

from data import synthetic
from wsss_jax import checkpoints, methods, runs
from wsss_jax import config as config_lib
from wsss_jax.methods.contract import load_method
from wsss_jax.training import history
from wsss_jax.wording import format_count

PHASES = ("phase1", "phase2")  # fields of the networks, and the methods they are usually of
_SCORES = {"miou": "mIoU", "val_mean_f1": "mean F1"}  # the first that a validation gave
_SAME_MPP = 0.05  # resolutions that differ by less, as a share, are one


class Origin(NamedTuple):
    """Where a network comes from; of JSON types.

    Attributes:
      dataset: name of the data set it was trained on.
      drawn: whether that is the synthetic tissue of the demo.
      mpp: micrometers per pixel of its patches; None if unknown.
      patch_size: pixels, side of its patches; 0 if unknown.
      score: what the weights that are used scored on the validation patches, or "none".
      epochs: trained so far; None for a converted file of weights, which has no history.
      planned: epochs that its configuration asks for.
      version: of the software that trained or converted it.
      trained_in, precision: what it was trained in, and what it predicts in.
      method: the title of its method; "" in results of versions that did not say.
    """

    dataset: str
    drawn: bool
    mpp: float | None
    patch_size: int
    score: str
    epochs: int | None
    planned: int
    version: str
    trained_in: str
    precision: str
    method: str = ""


def read_origins(config: ml_collections.ConfigDict) -> dict[str, Origin]:
    """Reads the origin of each network that a complete configuration names, by phase.

    Raises:
      InputError: no such run, or its history cannot be read.
    """
    phases = [phase for phase in PHASES if config[phase]]
    return {phase: _read_origin(config[phase], phase, config.precision) for phase in phases}


def _read_origin(workdir: str, phase: str, precision: str) -> Origin:
    config, dataset = runs.load(workdir, phase, methods.METHODS)
    epochs = history.load(Path(workdir))
    is_converted = epochs is None and (Path(workdir) / checkpoints.FOLDER / "0").is_dir()
    return Origin(
        dataset=dataset.name,
        drawn=dataset.name == synthetic.DATASET.name,
        mpp=None if config.data.resize else dataset.mpp,
        patch_size=config.data.patch_size,
        score=_describe_score(epochs or [], config.select),
        epochs=None if is_converted else len(epochs or []),
        planned=history.count_epochs(config),
        version=config_lib.version(Path(workdir), phase),
        trained_in=config.precision,
        precision=precision or config.precision,
        method=load_method(config.job).TITLE,
    )


def _describe_score(epochs: list[dict], select: str) -> str:
    """Describes the score of the best or the last epoch, whichever the weights are from."""
    means = [record.get(history.SMOOTHED) for record in epochs]
    known = [mean for mean in means if mean is not None]
    if known and select == "smoothed":
        count = format_count(len(epochs), "epoch")
        return f"mIoU {max(known):.3f} (best mean of successive epochs, of {count})"
    for key, name in _SCORES.items():
        values = [record.get(key) for record in epochs]
        known = [value for value in values if value is not None]
        count = format_count(len(epochs), "epoch")
        if known and select == "best":
            return f"{name} {max(known):.3f} (best of {count})"
        if known and values[-1] is not None:
            return f"{name} {values[-1]:.3f} (last of {count})"
    return "none"


def name_network(phase: str, origin: Origin | None) -> str:
    """Names a network as texts do: by its method, such as "phase 1" or "HistoSegNet".

    Args:
      phase: of `PHASES`; without a known method, the network is of this one.
      origin: of the network; None if it is unknown.
    """
    return (origin and origin.method) or load_method(phase).TITLE


def begin_sentence(text: str) -> str:
    """Returns the text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def describe(origin: Origin) -> dict[str, str]:
    """Describes the origin in words: label -> text."""
    resolution = "unknown" if origin.mpp is None else f"{origin.mpp:g} µm per pixel"
    if origin.patch_size:
        resolution += f", patches of {origin.patch_size} pixels"
    known, unknown = f"{origin.epochs} of {origin.planned}", "no history: converted weights"
    return {
        "data set": origin.dataset + (" (drawn by a program)" if origin.drawn else ""),
        "resolution": resolution,
        "validation score": origin.score,
        "epochs": unknown if origin.epochs is None else known,
        "precision": origin.precision,
        "software version": origin.version,
    }


def list_warnings(origins: Mapping[str, Origin], mpp: float) -> list[str]:
    """Lists reasons against using these networks at `mpp` micrometers per pixel, in sentences."""
    texts = []
    for phase, origin in origins.items():
        name = begin_sentence(name_network(phase, origin))
        if origin.drawn:
            texts.append(
                f"{name} was trained on tissue drawn by a program (the demo), not on real tissue: "
                "the map shows that the software works and says nothing about the slide"
            )
        if origin.mpp is not None and abs(mpp / origin.mpp - 1) > _SAME_MPP:
            texts.append(
                f"{name} was trained at {origin.mpp:g} micrometers per pixel and is used at "
                f"{mpp:g}: set --config.mpp={origin.mpp:g}, or train at {mpp:g}"
            )
        if origin.epochs is None:
            texts.append(
                f"{name} has converted weights without a history: how they were trained and what "
                "they score is not known here"
            )
        elif origin.epochs < origin.planned:
            texts.append(
                f"{name} was trained for {origin.epochs} of {origin.planned} epochs only: give the "
                "same command of its training again to finish it"
            )
    return texts
