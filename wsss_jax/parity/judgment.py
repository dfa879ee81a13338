"""Compares the numbers of two programs tensor by tensor and judges the differences.

There are two judgments. Where both sides computed in float64, rounding hides nothing: a tensor over
its tolerance differs. Where one side computed in a lower precision, the tolerances are those of
float32, and for a tensor over its tolerance it is measured how far rounding alone moves it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.parity import golden, numbers
from wsss_jax.progress import show_progress

# Largest difference as a share of the tensor's largest absolute value, by kind, in float32.
TOLERANCES = {
    "forward": 1e-5,
    "pda": 1e-5,
    "phase1_segmentation_label": 1e-5,
    "gradcam": 1e-4,
    "grad": 5e-4,
    "train": 1e-5,
    "running": 1e-5,
    "after3": 1e-5,
    "metrics": 1e-9,
}
FLOAT64 = 1e-5  # what the tolerances are multiplied by in float64
# The same for phase 2 in float64. Each step magnifies rounding, as on few images the pooling branch
# normalizes over as many values as there are images. Measured against the released code: losses
# 8e-8, parameters after three steps 3.7e-5 (one rounding of every weight: up to 6e-5). That single
# ReLUs flip would explain it; it is not proven.
PHASE2_STEPS = {"train": 1e-6, "after3": 5e-4}
PIXELS = 1e-3  # share of the pixels of label maps that may differ

# What rounding does to a tensor is measured in runs with perturbed weights.
RUNS = 4
PERTURBATION = 4  # roundings of every weight, up or down: what a deep network may add up to
ALLOWANCE = 5  # times as far as in those runs a tensor may be off
MAX_ALLOWED = 0.5  # share it may never be off by
# In which tensor of these kinds a ReLU that flips near zero shows is a matter of chance: each is
# allowed what a quarter of its kind exceeds.
POOLED_KINDS = ("gradcam", "grad", "running", "after3")


class Judgment(NamedTuple):
    """Which numbers are compared, and what counts as equal.

    Attributes:
      phase: 1 or 2.
      precision: this system's, "float32", "bfloat16" or "float64".
      other_precision: of the numbers it is compared with.
    """

    phase: int
    precision: str
    other_precision: str

    @property
    def is_exact(self) -> bool:
        """Whether both sides computed in float64."""
        return self.precision == self.other_precision == "float64"

    @property
    def coarser(self) -> str:
        """The precision that rounds more."""
        return max(self.precision, self.other_precision, key=lambda name: jnp.finfo(name).eps)

    def tolerances(self) -> dict[str, float]:
        """Returns the largest share a tensor may differ by, by kind."""
        if not self.is_exact:
            return TOLERANCES
        exact = {kind: tolerance * FLOAT64 for kind, tolerance in TOLERANCES.items()}
        return exact | (PHASE2_STEPS if self.phase == 2 else {})

    def describe(self) -> str:
        """Says in one line which judgment it is."""
        sides = f"{self.precision} against {self.other_precision}"
        tolerances = self.tolerances()
        listed = (
            f"tolerance {tolerances['forward']:.0e} for forward passes, {tolerances['grad']:.0e} "
            f"for gradients, {tolerances['after3']:.0e} after {golden.STEPS} steps"
        )
        if self.is_exact:
            return f"exact: {sides}, {listed}"
        return f"within rounding: {sides}, {listed}; beyond it, what rounding alone explains"


class Row(NamedTuple):
    """A compared tensor.

    Attributes:
      name: of the tensor, see `golden`.
      shape: of the whole tensor.
      difference: the largest absolute one, or the number of differing pixels of a label map.
      share: the difference as a share of the tensor's largest absolute value, or of the pixels.
      tolerance: the largest such share that counts as equal.
      rounding: the share that rounding alone explains; None where it was not measured.
    """

    name: str
    shape: tuple[int, ...]
    difference: float
    share: float
    tolerance: float
    rounding: float | None = None

    @property
    def verdict(self) -> str:
        """ "equal" within the tolerance, "rounding" if that explains it, else "DIFFERS"."""
        if self.share <= self.tolerance:
            return "equal"
        if self.rounding is not None and self.share <= min(ALLOWANCE * self.rounding, MAX_ALLOWED):
            return "rounding"
        return "DIFFERS"


def compare(
    expected: Mapping[str, golden.Recorded],
    computed: Mapping[str, np.ndarray],
    judgment: Judgment,
) -> list[Row]:
    """Compares every expected tensor with the computed one; both by name.

    Raises:
      InputError: an expected tensor was not computed, or has another shape.
    """
    tolerances = judgment.tolerances()
    rows = []
    for name, recorded in expected.items():
        shape = computed[name].shape if name in computed else None
        if shape != recorded.shape:
            raise InputError(
                f"{name} has the shape {recorded.shape} on the other side and {shape} here; use "
                "the weights and images that the golden file was made from"
            )
        difference, share = _measure_difference(recorded, computed[name])
        is_label_map = computed[name].dtype == np.uint8
        tolerance = PIXELS if is_label_map else tolerances[golden.get_kind(name)]
        rows.append(Row(name, recorded.shape, difference, share, tolerance))
    return rows


def measure_rounding(
    compute: numbers.Compute,
    state_dict: Mapping[str, np.ndarray],
    computed: Mapping[str, np.ndarray],
    expected: Mapping[str, golden.Recorded],
    precision: str,
) -> dict[str, float]:
    """Measures how far rounding alone moves each tensor, as a share of its largest value.

    A tensor that rounding moves as far as the two sides are apart cannot tell two programs apart.
    In phase 1 a ReLU near zero or a pixel near the cut-off of the attention flips and shows in
    gradients and Grad-CAM; the gradients of phase 2 are ill-conditioned on few images.

    Args:
      compute: weights -> this system's numbers.
      state_dict: the weights.
      computed: their numbers.
      expected: which entries of which tensors to look at.
      precision: of the coarser side, whose rounding is measured.
    """
    epsilon = PERTURBATION * float(jnp.finfo(precision).eps)
    unperturbed = {
        name: recorded._replace(values=_select_entries(computed[name], recorded))
        for name, recorded in expected.items()
    }
    rounding = dict.fromkeys(expected, 0.0)
    for seed in show_progress(iterable=range(RUNS), desc="effect of rounding", unit="run"):
        rng = np.random.default_rng(seed)
        perturbed = compute(
            {
                name: array * (1 + epsilon * rng.integers(-1, 2, array.shape))
                for name, array in state_dict.items()
            }
        )
        for name, recorded in unperturbed.items():
            rounding[name] = max(rounding[name], _measure_difference(recorded, perturbed[name])[1])
    for kind in POOLED_KINDS:
        names = [name for name in rounding if golden.get_kind(name) == kind]
        if names:
            pooled = np.quantile([rounding[name] for name in names], 0.75, method="lower")
            rounding |= {name: max(rounding[name], float(pooled)) for name in names}
    return rounding


def _measure_difference(recorded: golden.Recorded, tensor: np.ndarray) -> tuple[float, float]:
    """Returns the largest difference and its share, or the differing pixels and theirs."""
    values = _select_entries(tensor, recorded)
    if tensor.dtype == np.uint8:
        differing = int((values != recorded.values).sum())
        return differing, differing / values.size
    difference = np.abs(values.astype(np.float64) - recorded.values)
    if not np.isfinite(difference).all():
        return float("inf"), float("inf")
    largest = float(difference.max())
    return largest, largest / recorded.absmax if recorded.absmax else largest


def _select_entries(tensor: np.ndarray, recorded: golden.Recorded) -> np.ndarray:
    return tensor if recorded.indices is None else tensor.reshape(-1)[recorded.indices]
