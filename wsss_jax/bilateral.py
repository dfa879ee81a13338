"""Sums over all pixels, weighted by their distances and differences in color, on the device.

A kernel K of pixels i and j, exp(-|position i - position j|^2 / 2 sxy^2 - |color i - color j|^2 /
2 srgb^2), is applied to planes: sum over j of K(i, j) q(j), j = i among them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# q -> K q of a kernel K: planes (C, H, W) float32, of any C
Apply = Callable[[jax.Array], jax.Array]

HELD = 2**27  # the most values of a kernel that are kept for all iterations: 512 MiB
AT_ONCE = 2**24  # values that are held at once where they are computed again each time: 64 MiB
CHUNK = 2**21  # the same for pairs of all pixels, which make a matrix: 8 MiB
_AGAIN = 3  # how much longer a pair takes where its value is computed again each time
_TOGETHER = 4  # shifts that are added in one pass over the sums
_FAR = 100.0  # standard deviations (times the square root of 2) to a color that no pixel has


class Kernel(NamedTuple):
    """A kernel on positions and colors.

    Attributes:
      sxy: standard deviation of positions, pixels.
      srgb: standard deviation of each color channel, gray values of 0 to 255.
      truncation: radius where the kernel ends, in `sxy`; kernels about as wide as the image or
        wider do not end, with a `stride` of 1.
      stride: 1 = every pixel; n = one pixel stands for the n x n around it, but for neighbors. Of
        use where n is small beside `sxy` and a pixel has many of its color.
    """

    sxy: float
    srgb: float
    truncation: float
    stride: int


class _Shift(NamedTuple):
    """A shift of the image, for which all pairs of pixels that lie so are summed up at once."""

    down: int
    across: int
    weight: float  # number of pixels that the one stands for


def make_bilateral(image: jax.Array, kernel: Kernel) -> Apply:
    """Makes the function that applies a kernel to planes over an image.

    Of two forms the cheaper: shifts of the image within a window, each for both directions, or a
    matrix of all pairs, some rows at a time. No more of either than `HELD` is in memory.

    Args:
      image: (H, W, 3) uint8 RGB.
      kernel: see there.
    """
    height, width = image.shape[:2]
    unit = math.sqrt(0.5) / kernel.srgb
    colors = [image[..., channel].astype(jnp.float32) * unit for channel in range(3)]
    shifts, itself = list_shifts(kernel, (height, width))
    reach = max((abs(shift.across) for shift in shifts), default=0)
    pairs = len(shifts) * height * (width + reach)
    if pairs > HELD:
        pairs *= _AGAIN
    if kernel.stride > 1 or pairs < (height * width) ** 2:
        return _sum_shifts(colors, shifts, itself, kernel.sxy, -255 * unit - _FAR)
    return _sum_all(colors, kernel.sxy)


def list_shifts(kernel: Kernel, size: Sequence[int]) -> tuple[list[_Shift], float]:
    """Lists the shifts of a kernel's window, one of each pair of opposites, and no shift's weight.

    With a stride n they are multiples of n that stand for n x n pixels, but for the nine in the
    middle, which are summed up pixel by pixel: there a pixel is most like itself. Weights are in
    units of n x n pixels.

    Args:
      kernel: see there.
      size: (H, W) of the image, which shifts do not exceed.
    """
    stride, radius = kernel.stride, kernel.truncation * kernel.sxy
    height, width = size
    down, across = (math.floor(min(radius, side) / stride) + 1 for side in size)
    weights: dict[tuple[int, int], float] = {}
    # The share of a pixel in a block around a multiple of the stride; ends belong to two blocks.
    inside = range(-(stride // 2), stride // 2 + 1)
    share = {at: (0.5 if 2 * abs(at) == stride else 1.0) / stride for at in inside}
    for y in range(down + 1):  # the others are opposites
        for x in range(-across, across + 1):
            if math.hypot(y, x) * stride > radius:
                continue
            if max(abs(y), abs(x)) > 1:
                weights[y * stride, x * stride] = weights.get((y * stride, x * stride), 0.0) + 1
                continue
            for a in inside:
                for b in inside:
                    at = y * stride + a, x * stride + b
                    weights[at] = weights.get(at, 0.0) + share[a] * share[b]
    shifts = [
        _Shift(y, x, weight)
        for (y, x), weight in sorted(weights.items())
        if (y, x) > (0, 0) and y < height and abs(x) < width
    ]
    return shifts, weights[0, 0]


def _sum_shifts(
    colors: Sequence[jax.Array],
    shifts: Sequence[_Shift],
    itself: float,
    sxy: float,
    far: float,
) -> Apply:
    """Applies a kernel shift by shift.

    Planes are rows of pixels one after the other, each followed by a gap as wide as the farthest
    shift, so that a shift is one number and what leaves a row meets a gap: of a color that is far
    from all, with sums of 0. As loops over one axis they run several times faster on CPUs than
    over (C, H, W).
    """
    height, width = colors[0].shape
    gap = max((abs(shift.across) for shift in shifts), default=0)
    length = height * (width + gap)
    steps = [shift.down * (width + gap) + shift.across for shift in shifts]  # all positive
    margin = max(steps, default=0)

    def flatten(plane: jax.Array, fill: float) -> jax.Array:
        rows = jnp.pad(plane, ((0, 0), (0, gap)), constant_values=fill)
        return jnp.pad(rows.reshape(-1), margin, constant_values=fill)

    padded = [flatten(plane, far) for plane in colors]
    block = -(-len(shifts) // _TOGETHER) * _TOGETHER
    if block * length > HELD:
        block = max(1, AT_ONCE // (_TOGETHER * length)) * _TOGETHER
    blocks = -(-len(shifts) // block) if shifts else 0
    missing = blocks * block - len(shifts)
    offsets = jnp.asarray([*steps, *[0] * missing], jnp.int32)
    falls = [
        (shift.down**2 + shift.across**2) * 0.5 / sxy**2 - math.log(shift.weight)
        for shift in shifts
    ]
    distances = jnp.asarray(np.array([*falls, *[np.inf] * missing]), jnp.float32)

    def start() -> jax.Array:
        # Before the kernel's rows there is room to go back by a shift: to sums of 0.
        return jnp.zeros(margin + block * length, jnp.float32)

    def fill(first: jax.Array | int, kernel: jax.Array) -> jax.Array:
        """Computes the kernel of a block of shifts, pixel by pixel."""

        def compute(row: jax.Array, kernel: jax.Array) -> jax.Array:
            here, there = margin, margin + offsets[first + row]
            squares = distances[first + row]
            for plane in padded:
                one = lax.slice(plane, (here,), (here + length,))
                squares += jnp.square(one - lax.dynamic_slice(plane, (there,), (length,)))
            values = jnp.exp(-squares)
            return lax.dynamic_update_slice(kernel, values, (margin + row * length,))

        return lax.fori_loop(0, block, compute, kernel)

    def add(
        first: jax.Array | int,
        kernel: jax.Array,
        planes: Sequence[jax.Array],
        sums: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """Adds what the pixels at a block of shifts, and at their opposites, contribute."""

        def take(source: jax.Array, begin: jax.Array) -> jax.Array:
            return lax.dynamic_slice(source, (begin,), (length,))

        def add_some(group: jax.Array, sums: Sequence[jax.Array]) -> list[jax.Array]:
            rows = [group * _TOGETHER + index for index in range(_TOGETHER)]
            steps = [offsets[first + row] for row in rows]
            begins = [margin + row * length for row in rows]
            results = []
            for plane, total in zip(planes, sums):
                for begin, step in zip(begins, steps):
                    total += take(kernel, begin) * take(plane, margin + step)
                    total += take(kernel, begin - step) * take(plane, margin - step)
                results.append(total)
            return results

        return lax.fori_loop(0, block // _TOGETHER, add_some, list(sums))

    held = fill(0, start()) if blocks == 1 else None

    def apply(q: jax.Array) -> jax.Array:
        planes = [flatten(plane, 0.0) for plane in q]
        sums = [itself * lax.slice(plane, (margin,), (margin + length,)) for plane in planes]
        if held is not None:
            sums = add(0, held, planes, sums)
        elif blocks:

            def add_block(
                index: jax.Array, carry: tuple[jax.Array, list[jax.Array]]
            ) -> tuple[jax.Array, list[jax.Array]]:
                kernel = fill(index * block, carry[0])
                return kernel, add(index * block, kernel, planes, carry[1])

            _, sums = lax.fori_loop(0, blocks, add_block, (start(), sums))
        return jnp.stack(sums).reshape(-1, height, width + gap)[:, :, :width]

    return apply


def _sum_all(colors: Sequence[jax.Array], sxy: float) -> Apply:
    """Applies a kernel as a matrix of all pairs of pixels, some rows at a time."""
    height, width = colors[0].shape
    pixels = height * width
    axes = jnp.mgrid[:height, :width].astype(jnp.float32) * (math.sqrt(0.5) / sxy)
    features = [axis.reshape(-1) for axis in (*axes, *colors)]
    rows = max(1, min(pixels, CHUNK // pixels))

    def apply(q: jax.Array) -> jax.Array:
        columns = q.reshape(q.shape[0], pixels).T

        def fill_rows(index: jax.Array, sums: jax.Array) -> jax.Array:
            first = jnp.minimum(index * rows, pixels - rows)  # the last ones may overlap
            squares = jnp.float32(0)
            for feature in features:
                some = lax.dynamic_slice(feature, (first,), (rows,))
                squares += jnp.square(some[:, None] - feature)
            part = jnp.dot(jnp.exp(-squares), columns, precision=lax.Precision.HIGHEST)
            return lax.dynamic_update_slice(sums, part, (first, 0))

        sums = lax.fori_loop(0, -(-pixels // rows), fill_rows, jnp.zeros_like(columns))
        return sums.T.reshape(q.shape)

    return apply
