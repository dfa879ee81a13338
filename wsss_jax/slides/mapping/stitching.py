"""Overlapping tiles to one map of the slide: probabilities averaged at every pixel, then argmax.

Tiles lie on one grid over the whole slide. The work goes strip by strip (see `parts`), in each
strip from top to bottom, and sums are kept for as many rows as a tile has: memory depends on the
tile and on the width of a strip, never on the slide. Tiles across the border of two strips are
computed for both.

The map is the same to the last bit however often a run was killed: at each pixel the tiles are
added in the order of the grid, and a tile always shares its batch with the same others (see
`plan`).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wsss_jax.masks import WhiteRule, find_white_background
from wsss_jax.slides.mapping import memory
from wsss_jax.slides.mapping.gate_windows import GateWindows, Step
from wsss_jax.slides.mapping.parts import Layout, Part, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.rolling_mean import Band, RollingMean
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.slides.mapping.tissue import Tissue

READERS = 4  # threads that read tiles; decoding releases the interpreter lock
WHITE_COLUMNS = 1024  # read at once for the white rule
_WHITE = 255

# (x, y, width, height) in working pixels -> (height, width, 3) uint8, white outside of the slide;
# called by several threads.
Read = Callable[[int, int, int, int], np.ndarray]
# (B, tile, tile, 3) uint8 -> (B, tile, tile, C) float32, gated. It may return before a device is
# done: the result is converted to NumPy as late as possible.
Predict = Callable[[np.ndarray], Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


class SharedGate(NamedTuple):
    """The networks apart, for a gate whose windows several tiles share.

    Attributes:
      classify: phase 1, (B, tile, tile, 3) uint8 -> the probabilities of classes (B, C) float32.
      segment: phase 2 behind the gate, (B, tile, tile, 3) uint8 and such probabilities -> as
        `Predict`.
    """

    classify: Callable[[np.ndarray], Any]
    segment: Callable[[np.ndarray, np.ndarray], Any]


class MapInputs(NamedTuple):
    """What a map is computed from.

    Attributes:
      read: the slide at the working resolution.
      tissue: of the slide; elsewhere the map has no class.
      predict: the networks, for batches of always the same number of tiles.
      num_classes: C.
      white: the rule for white background, of data sets that have one.
      gate: the networks for plans whose gate has windows of its own.
    """

    read: Read
    tissue: Tissue
    predict: Predict
    num_classes: int
    white: WhiteRule | None = None
    gate: SharedGate | None = None


def stitch(
    inputs: MapInputs,
    plan: Plan,
    parts: Parts,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Computes and writes the missing parts of a slide's map.

    A pixel's label is the class of the highest mean probability, the first of equals. Where there
    is no tissue or white background, the label is `num_classes` and all probabilities are 0.

    Args:
      inputs, plan: what the map is computed from, and in which tiles.
      parts: where to write; probabilities are written if it has channels for them.
      progress: called with the number of tiles after each batch; they add up to `plan.count`.

    Raises:
      InputError: probabilities that are not finite. Errors of `inputs` and `progress` pass through,
        and no thread is left running.
    """
    num_classes = inputs.num_classes

    def finish(part: Part, labels: np.ndarray, probabilities: np.ndarray) -> None:
        tissue = find_tissue(part, inputs)
        np.copyto(labels, num_classes, where=~tissue)
        probabilities *= tissue
        parts.write(part, labels, probabilities)
        memory.release_freed()

    averages = average_tiles(inputs, plan, parts.missing, progress)
    with ThreadPoolExecutor(1) as finisher, closing(averages) as bands:
        finishing: Future | None = None
        for part, x, y, means, covered in bands:
            if y == part.y0:
                labels = np.full(part.shape, num_classes, np.uint8)
                probabilities = np.zeros((parts.channels, *part.shape), np.uint8)
            rows, columns = covered.shape
            area = np.s_[y - part.y0 : y - part.y0 + rows, x - part.x0 : x - part.x0 + columns]
            labels[area] = np.where(covered, means.argmax(axis=-1), num_classes)
            for channel, probability in enumerate(probabilities):
                probability[area] = np.rint(255 * means[..., channel])
            if y + rows == part.y1:
                if finishing:
                    finishing.result()
                finishing = finisher.submit(finish, part, labels, probabilities)
        if finishing:
            finishing.result()


def list_shared_columns(inputs: MapInputs, plan: Plan, layout: Layout) -> list[tuple[int, int]]:
    """Lists the columns that two strips read, around each border: first and last (exclusive)."""
    reach = plan.tiling.tile + plan.tiling.gate_stride
    if inputs.white:
        reach = max(reach, inputs.white.min_area)
    borders = range(layout.strip, layout.width, layout.strip)
    return [(max(x - reach, 0), min(x + reach, layout.width)) for x in borders]


def average_tiles(
    inputs: MapInputs,
    plan: Plan,
    missing: Sequence[Part],
    progress: Callable[[int], None] | None = None,
) -> Generator[Band]:
    """Yields the mean of the tiles' probabilities over the missing parts, band by band.

    Takes the arguments of `stitch`. Threads read until the generator ends or is closed.
    """
    for run, batches, windows in plan.divide(missing):
        rolling = RollingMean(run, plan.tiling.weights, inputs.num_classes)
        with closing(predict_batches(inputs, plan.tiling, batches, windows)) as results:
            for batch, probabilities in results:
                for (x, y), probability in zip(batch.tolist(), probabilities):
                    yield from rolling.advance(y)
                    rolling.add(x, y, probability)
                if progress:
                    progress(len(batch))
        yield from rolling.advance(run[-1].y1)


def predict_batches(
    inputs: MapInputs,
    tiling: Tiling,
    batches: Iterable[np.ndarray],
    windows: GateWindows | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches and their probabilities (n, tile, tile, C), the last one without its filling.

    A batch is (n, 2) int, (x, y) of its tiles, with n up to `tiling.batch_size`. One is waited for
    after the next one was handed to `predict`: a device always has work. With `windows`, which need
    `inputs.gate`, the gate is of those and not of each tile.
    """
    tile = tiling.tile
    steps = map(Step, batches) if windows is None else windows.order(batches)

    def read(step: Step) -> tuple[Step, np.ndarray]:
        images = np.full((tiling.batch_size, tile, tile, 3), _WHITE, np.uint8)
        for image, (x, y) in zip(images, step.places.tolist()):
            image[:] = inputs.read(x, y, tile, tile)
        return step, images

    def predict(batch: np.ndarray, images: np.ndarray) -> Any:
        if windows is None:
            return inputs.predict(images)
        assert inputs.gate is not None  # as the docstring asks
        return inputs.gate.segment(images, windows.look_up(batch))

    started: deque[tuple[np.ndarray, Any]] = deque()
    with closing(map_in_threads(read, steps, READERS)) as loaded:
        for step, images in loaded:
            if windows is not None and step.windows is not None:
                assert inputs.gate is not None
                windows.keep(step.windows, inputs.gate.classify(images))
                continue
            started.append((step.places, predict(step.places, images)))
            if len(started) > 1:
                batch, probabilities = started.popleft()
                yield batch, np.asarray(probabilities)[: len(batch)]
    for batch, probabilities in started:
        yield batch, np.asarray(probabilities)[: len(batch)]


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result]:
    """Maps a function over items; `threads` compute at most that many results ahead."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def find_tissue(part: Part, inputs: MapInputs) -> np.ndarray:
    """Finds the pixels of a part that are tissue and not white background; (rows, columns) bool."""
    (rows, columns), rule = part.shape, inputs.white
    tissue = np.array(inputs.tissue.read(part.x0, part.y0, columns, rows))
    if rule is None:
        return tissue
    # The rule is applied to blocks with `min_area` pixels of the slide around them, and is right
    # within the block as if it had seen the slide. Let A be the bright area around a pixel of the
    # block, as far as it lies in the extended block. If A has min_area pixels, so has the whole
    # area. If it has fewer, all of A is within min_area - 2 steps of the pixel, and A's neighbors
    # are within min_area - 1: in the extended block, or off the slide. So A is the whole area.
    margin, width, height = rule.min_area, inputs.tissue.width, inputs.tissue.height
    y0, y1 = max(part.y0 - margin, 0), min(part.y1 + margin, height)
    for left in range(part.x0, part.x1, WHITE_COLUMNS):
        right = min(left + WHITE_COLUMNS, part.x1)
        block = tissue[:, left - part.x0 : right - part.x0]
        if block.any():
            x0, x1 = max(left - margin, 0), min(right + margin, width)
            white = find_white_background(inputs.read(x0, y0, x1 - x0, y1 - y0), rule)
            block &= ~white[part.y0 - y0 : part.y1 - y0, left - x0 : right - x0]
    return tissue
