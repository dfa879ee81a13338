"""One confusion matrix per patch, and all scores that are derived from it.

Counting runs on the device (jax); the scores are derived on the host (numpy, float64) from counts
that the caller sums in int64. A matrix has C rows, the true classes, and C + 1 columns, the
predicted classes and then the excluded index: a tissue pixel predicted as white is an error of its
class, but no hit or false alarm of another class. Pixels whose truth is excluded (index C) do not
count.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrices(
    truth: jax.Array | np.ndarray, prediction: jax.Array | np.ndarray, num_classes: int
) -> jax.Array:
    """Counts true against predicted classes, for each example of a batch.

    Args:
      truth: (B, ...) integers; values outside 0..C-1 are excluded and do not count.
      prediction: (B, ...) integers; values outside 0..C-1 count in the last column.
      num_classes: C.

    Returns:
      (B, C, C + 1) int32, exact; rows truth, columns prediction. Sum them in int64: int32 is
      enough for 42,000 patches of 224 x 224.
    """
    batch = truth.shape[0]

    def flatten(index: jax.Array | np.ndarray) -> jax.Array:
        index = index.reshape(batch, -1).astype(jnp.int32)
        return jnp.where((index >= 0) & (index < num_classes), index, num_classes)

    # One scatter into B (C + 1)^2 bins: 1.1 ms for 20 x 224 x 224 pixels on two CPU cores. A
    # product of one-hot encodings takes 16 ms with 4 classes and 90 ms with 21.
    bins = (num_classes + 1) ** 2
    codes = flatten(truth) * (num_classes + 1) + flatten(prediction)
    codes += bins * jnp.arange(batch)[:, None]
    counts = jnp.bincount(codes.ravel(), length=batch * bins)
    counts = counts.reshape(batch, num_classes + 1, num_classes + 1)
    return counts[:, :num_classes].astype(jnp.int32)


def segmentation_scores(confusion: np.ndarray) -> dict[str, Any]:
    """Derives the paper's segmentation scores from one confusion matrix over all pixels.

    Args:
      confusion: (C, C + 1) counts, rows truth; (C, C) is accepted too.

    Returns:
      `iou`: C floats, intersection over union, nan for a class in neither truth nor prediction;
      `miou`: their mean without the nan; `fwiou`: mean weighted by the pixels of each true
      class; `acc`: share of pixels that are right; `class_acc`: mean over the true classes of
      the share of their pixels that are right. All are nan if no pixel counts.
    """
    confusion = np.asarray(confusion, np.float64)
    hits = np.diagonal(confusion)
    true_pixels = confusion.sum(axis=1)
    iou = _iou(confusion)
    total = true_pixels.sum()
    present = true_pixels > 0
    return {
        "iou": iou.tolist(),
        "miou": _mean(iou),
        "fwiou": float(_ratio((true_pixels[present] * iou[present]).sum(), total)),
        "acc": float(_ratio(hits.sum(), total)),
        "class_acc": _mean(_ratio(hits, true_pixels)),
    }


def patch_miou(confusions: np.ndarray) -> np.ndarray:
    """Computes the mean IoU of each patch over the classes in its truth or prediction.

    Args:
      confusions: (B, C, C + 1) counts.

    Returns:
      (B,) float64, nan for a patch in which no pixel counts, which `np.argsort` puts last.
    """
    return np.array([_mean(_iou(confusion)) for confusion in np.asarray(confusions, np.float64)])


def predict_majority(confusion: np.ndarray) -> np.ndarray:
    """Counts for the most frequent true class everywhere, the simplest prediction.

    Args:
      confusion: (C, C + 1) counts of any prediction; only its row sums matter.

    Returns:
      (C, C + 1) counts of the same dtype.
    """
    true_pixels = np.asarray(confusion).sum(axis=1)
    constant = np.zeros((len(true_pixels), len(true_pixels) + 1), true_pixels.dtype)
    constant[:, true_pixels.argmax()] = true_pixels
    return constant


def multilabel_scores(
    probability: np.ndarray, labels: np.ndarray, threshold: float = 0.5
) -> dict[str, Any]:
    """Scores patch labels.

    Args:
      probability: (N, C) floats in [0, 1].
      labels: (N, C) multi-hot.
      threshold: a class is predicted where its probability exceeds this.

    Returns:
      `exact_match`: share of patches with all labels right; `patch_accuracy`: share of all
      N C labels that are right; `f1`: C floats, nan for a class neither present nor predicted;
      `mean_f1`: their mean without the nan.
    """
    predicted = np.asarray(probability) > threshold
    present = np.asarray(labels) > 0.5
    right = predicted == present
    f1 = _ratio(2 * (predicted & present).sum(axis=0), predicted.sum(axis=0) + present.sum(axis=0))
    return {
        "exact_match": float(_ratio(right.all(axis=1).sum(), len(right))),
        "patch_accuracy": float(_ratio(right.sum(), right.size)),
        "f1": f1.tolist(),
        "mean_f1": _mean(f1),
    }


def balanced_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Finds for each class the threshold where it is missed as often as it is falsely seen.

    That is the point of the ROC curve where the true positive rate is 1 - the false positive rate,
    "present" being a score of at least the threshold. The curve has a point for each score; between
    two of them, the threshold is interpolated linearly in the difference of the two rates.

    Args:
      scores: (N, C) floats.
      labels: (N, C), nonzero where the class is present.

    Returns:
      (C,) float64; nan for a class that all or none of the N have.
    """
    by_class = zip(np.asarray(scores, np.float64).T, np.asarray(labels).T > 0, strict=True)
    return np.array([_balanced_threshold(*each) for each in by_class], np.float64)


def _balanced_threshold(scores: np.ndarray, present: np.ndarray) -> float:
    if present.all() or not present.any():  # also of nothing
        return float("nan")
    thresholds = np.unique(scores)[::-1]
    rates = [
        1 - np.searchsorted(np.sort(scores[chosen]), thresholds) / chosen.sum()
        for chosen in (present, ~present)
    ]
    excess = rates[0] - (1 - rates[1])  # rises from -1, where nothing is over the threshold, to 1
    after = int((excess >= 0).argmax())
    if after == 0 or excess[after] == 0:
        return float(thresholds[after])
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    return float(thresholds[before] + share * (thresholds[after] - thresholds[before]))


def _iou(confusion: np.ndarray) -> np.ndarray:
    hits = np.diagonal(confusion)
    predicted_pixels = confusion[:, : len(confusion)].sum(axis=0)
    return _ratio(hits, confusion.sum(axis=1) + predicted_pixels - hits)


def _ratio(part: np.ndarray | int | float, whole: np.ndarray | int | float) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
