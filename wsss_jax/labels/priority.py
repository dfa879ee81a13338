"""Which patches to label first, by what a trained classifier sees in them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.patch_files import read_image
from wsss_jax.errors import InputError

ORDERS = ("random", "uncertain", "rare")
_BATCH = 32  # patches; it changes no probability


def rank_uncertain(probabilities: np.ndarray) -> np.ndarray:
    """Ranks patches by how unsure a classifier is: the mean entropy of its classes, in bits.

    Args:
      probabilities: (N, C) of the classes.

    Returns:
      (N,) floats; the most uncertain are the highest.
    """
    p = np.clip(probabilities.astype(np.float64), 1e-12, 1 - 1e-12)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(axis=1)


def rank_rare(probabilities: np.ndarray) -> np.ndarray:
    """Ranks patches by the rare classes that a classifier sees in them.

    Args:
      probabilities: (N, C) of the classes.

    Returns:
      (N,) floats: of each patch the sum of its probabilities, each divided by the mean of its class
      over all patches; those with rare classes are the highest.
    """
    p = probabilities.astype(np.float64)
    return (p / np.maximum(p.mean(axis=0), 1e-12)).sum(axis=1)


_RANKS = {"uncertain": rank_uncertain, "rare": rank_rare}


def rank(
    order: str, run: str, classes: Sequence[str], paths: Mapping[str, Path]
) -> dict[str, float]:
    """Ranks patches by a trained classifier.

    Args:
      order: "uncertain" or "rare".
      run: folder of the classifier.
      classes: C names, which must be its own.
      paths: name of the patch -> its picture.

    Returns:
      Name -> rank; the highest come first.

    Raises:
      InputError: no such run, other classes, or a patch of another size than it was trained on.
    """
    from wsss_jax.training.trained import bind, load_trained  # loads JAX, which a page needs not

    classifier = load_trained(run, "phase1", "presence")
    if classifier.dataset.classes != tuple(classes):
        raise InputError(
            f"{run} knows the classes {', '.join(classifier.dataset.classes)}, not "
            f"{', '.join(classes)}: name another --config.phase1, or set --config.order=random"
        )
    predict = bind({"classifier": classifier}, lambda made, _: made["classifier"].presence)
    size = classifier.config.data.patch_size
    probabilities = [
        np.asarray(predict({"image": images}))[:count]
        for images, count in _read_batches(list(paths.values()), size)
    ]
    ranks = _RANKS[order](np.concatenate(probabilities))
    return dict(zip(paths, ranks.tolist(), strict=True))


def _read_batches(paths: Sequence[Path], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields images, (B, H, W, 3), and how many of them count; the last batch is filled up."""
    for start in tqdm(range(0, len(paths), _BATCH), "ranking", unit="batch"):
        images = [read_image(path, size) for path in paths[start : start + _BATCH]]
        count = len(images)
        yield np.stack([*images, *images[-1:] * (_BATCH - count)]), count
