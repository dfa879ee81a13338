"""What an evaluation scores: trained runs by the row of its table, predicted in one program."""

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from data.dataset import Dataset
from wsss_jax import config as config_lib
from wsss_jax import metrics, runs
from wsss_jax.crf import DenseCrf, refine_probabilities
from wsss_jax.errors import InputError
from wsss_jax.methods.gate import Gate
from wsss_jax.methods.prediction import Prediction
from wsss_jax.sources import Batch
from wsss_jax.training.task import DeviceBatch
from wsss_jax.training.trained import Trained, bind, load_trained


class ScoredBatch(NamedTuple):
    """A row of the table, of a batch, on the device or on the host.

    Attributes:
      label_maps: (B, H, W) uint8.
      confusions: (B, C, C + 1) confusion matrices.
      presence: (B, C) probabilities of the classes; None if the last network gives none.
    """

    label_maps: Any
    confusions: Any
    presence: Any


Predictor = Callable[[Batch], dict[str, ScoredBatch]]


class Subject(NamedTuple):
    """What is scored: trained runs by the row of the table, and the gate's row, if there is one."""

    trained: dict[str, Trained]
    gated: str  # "" without gate
    dataset: Dataset

    @property
    def rows(self) -> list[str]:
        """The rows of the table, in its order; JAX sorts the names of what it returns."""
        return [*self.trained, *filter(None, [self.gated])]


def load_subject(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.FrozenConfigDict, Subject]:
    """Loads the runs, and completes the configuration by the data of the last one.

    Raises:
      InputError: no such runs, or runs with other classes.
    """
    # In this order they are the rows of the table; the gate's is the last.
    phases = config.phase1, config.phase2
    known = {os.path.abspath(path) for path in phases if path}
    further = {os.path.abspath(path): path for path in config.runs}
    named = [("runs", path, "") for where, path in further.items() if where not in known]
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
    subject = Subject(by_row, gated, last.dataset)
    return config_lib.replace(config, data=data), subject


def _name_rows(loaded: Sequence[tuple[str, Trained]]) -> dict[str, Trained]:
    """Names runs as tables do: by their method, and by their folders where several are of one."""
    rows: dict[str, Trained] = {}
    for path, each in loaded:
        name = title = each.method.TITLE
        alike = [path for path, run in loaded if title == run.method.TITLE]
        if len(alike) > 1:
            name = f"{title}: {name_folder(path, alike)}"
        rows[f"{name} (2)" if name in rows else name] = each  # one run as both phases
    return rows


def name_folder(path: str, alike: Sequence[str]) -> str:
    """Returns the part of a path by which it differs from others, in whole names.

    That is the shortest end that tells it from them, as "round2" of "runs/round2". If all have the
    same end, as the runs of several seeds do, it is what differs before that: "seed0/paper" and
    "seed1/tuned" of "seed0/paper/phase2" and "seed1/tuned/phase2".
    """
    own = Path(os.path.abspath(path)).parts
    all_parts = {Path(os.path.abspath(each)).parts for each in alike}
    shortest = min(map(len, all_parts))
    tail = _count_common([parts[::-1] for parts in all_parts], shortest - 1)
    if tail and len(all_parts) > 1:
        head = _count_common(list(all_parts), shortest - tail - 1)
        return str(Path(*own[head : len(own) - tail]))
    ends = (own[-length:] for length in range(1, len(own) + 1))
    others = all_parts - {own}
    return str(Path(*next(end for end in ends if all(e[-len(end) :] != end for e in others))))


def _count_common(sequences: Sequence[Sequence[str]], most: int) -> int:
    """Counts the names with which all sequences begin, `most` at most."""
    columns = zip(*(sequence[:most] for sequence in sequences))
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def make_predictor(config: ml_collections.ConfigDict, subject: Subject) -> Predictor:
    """Makes the predictor of all rows, one program over the local devices.

    Of those behind the gate, `load_subject` has seen to it that they give presence and logits.
    """
    gate, crf = Gate.of(config.gate), DenseCrf.of(config.crf)

    def refine(predictions: dict[str, Prediction], image: jax.Array) -> dict[str, jax.Array]:
        size = image.shape[1:3]
        probabilities = {
            name: trained.compute_probabilities(predictions[name], size)
            for name, trained in subject.trained.items()
        }
        if subject.gated:
            *_, classifier, segmenter = (predictions[name] for name in subject.trained)
            assert segmenter.logits is not None and classifier.presence is not None
            probabilities[subject.gated] = gate.probabilities(segmenter.logits, classifier.presence)
        refined = {k: refine_probabilities(v, image, crf) for k, v in probabilities.items()}
        return {name: each.argmax(axis=-1).astype(jnp.uint8) for name, each in refined.items()}

    def combine(predictions: dict[str, Prediction], batch: DeviceBatch) -> dict[str, ScoredBatch]:
        label_maps = {name: each.label_maps for name, each in predictions.items()}
        if subject.gated:
            *_, classifier, segmenter = (predictions[name] for name in subject.trained)
            assert segmenter.logits is not None and classifier.presence is not None
            label_maps[subject.gated] = gate.segment(segmenter.logits, classifier.presence)
        if crf.iterations:
            label_maps = refine(predictions, batch["image"])
        truth, num_classes = batch["masks"][:, 0], subject.dataset.num_classes
        return {
            name: ScoredBatch(
                maps,
                metrics.confusion_matrices(truth, maps, num_classes),
                predictions[name].presence if name in predictions else None,
            )
            for name, maps in label_maps.items()
        }

    predict = bind(subject.trained, combine)

    def predict_rows(batch: Batch) -> dict[str, ScoredBatch]:
        by_name = predict(batch)
        return {name: by_name[name] for name in subject.rows}

    return predict_rows
