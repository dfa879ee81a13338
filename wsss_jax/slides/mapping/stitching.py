"""Overlapping tiles to one map of the slide: probabilities averaged at every pixel, then argmax.

Tiles lie on one grid over the whole slide. The work goes strip by strip (`parts`), in each strip
from top to bottom, and sums are kept for as many rows as a tile has: memory depends on the tile and
on the width of a strip, never on the slide. Tiles across the border of two strips are computed for
both.

The map is the same to the last bit however often a run was killed. At each pixel the tiles are
added in the order of the grid, and tiles always share a batch with the same others (a network may
round differently in other company): batches are cut from all tiles of a strip, and a run that goes
on computes again those that reach into the parts still missing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping import memory
from wsss_jax.slides.mapping.parts import Part, Parts, layout
from wsss_jax.slides.mapping.tissue import Tissue

READERS = 4  # threads that read tiles; decoding releases the interpreter lock
_WHITE_COLUMNS = 1024  # read at once for the white rule
_WHITE = 255

# (x, y, width, height) in working pixels -> (height, width, 3) uint8, white outside of the slide;
# called by several threads.
Read = Callable[[int, int, int, int], np.ndarray]
# (B, tile, tile, 3) uint8 -> (B, tile, tile, C) float32, gated; arrays still on their way from a
# device are welcome, they are waited for as late as possible.
Predict = Callable[[np.ndarray], Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


class White(NamedTuple):
    """A rule that finds white background by areas of pixels.

    Attributes:
      find: (h, w, 3) uint8 -> (h, w) bool, the 4-connected areas of at least `min_area` pixels
        that each look white by themselves, as `masks.white_background` finds them.
      min_area: pixels.
    """

    find: Callable[[np.ndarray], np.ndarray]
    min_area: int


class Band(NamedTuple):
    """Averaged rows of a part, narrowed to the columns between the first and last that have any.

    Attributes:
      part: that they belong to. Its bands come from top to bottom and fill it.
      x, y: upper left corner on the slide, in working pixels.
      means: (rows, columns, C) float32; 0 where no tile lies; valid until the next band is asked.
      covered: (rows, columns) bool, where a tile lies.
    """

    part: Part
    x: int
    y: int
    means: np.ndarray
    covered: np.ndarray


def starts(length: int, tile: int, stride: int) -> np.ndarray:
    """Where tiles begin along an axis: 0, stride, 2 stride, ..., and the last ends where it ends.

    Args:
      length: of the axis in pixels. One tile at 0 covers an axis shorter than it.
      tile: its length in pixels.
      stride: 1 to tile, in pixels.

    Returns:
      (n,) int, ascending.

    Raises:
      InputError: a stride that would leave gaps, or not move.
    """
    if not 1 <= stride <= tile:
        raise InputError(f"a stride of {stride} for tiles of {tile}: choose one of 1 to {tile}")
    last = max(length - tile, 0)
    return np.append(np.arange(0, last, stride), last)


def window_weights(window: str, tile: int) -> np.ndarray:
    """What a tile's pixels weigh in the average.

    Args:
      window: "flat", or "hann", which trusts the middle of a tile more than its border.
      tile: pixels.

    Returns:
      (tile, tile) float32, above 0 everywhere.

    Raises:
      InputError: another window.
    """
    if window == "flat":
        return np.ones((tile, tile), np.float32)
    if window == "hann":
        profile = np.sin(np.pi * (np.arange(tile) + 0.5) / tile) ** 2
        return np.outer(profile, profile).astype(np.float32)
    raise InputError(f"there is no window {window!r}: choose flat or hann")


def plan(
    width: int,
    height: int,
    tissue: Tissue,
    *,
    tile: int,
    stride: int,
    batch_size: int,
    missing: Sequence[Part] | None = None,
) -> int:
    """How many tiles `stitch` computes for a slide, those computed for two strips twice.

    Args:
      width, height: of the slide in working pixels.
      tissue: tiles without any are left out.
      tile, stride: pixels.
      batch_size: tiles.
      missing: the parts that are left to do; all by default.
    """
    missing = layout(width, height) if missing is None else missing
    work = _work(missing, width, height, tissue, tile=tile, stride=stride, batch_size=batch_size)
    return sum(len(batch) for _, batches in work for batch in batches)


def stitch(
    view_read: Read,
    tissue: Tissue,
    predict: Predict,
    parts: Parts,
    *,
    tile: int,
    stride: int,
    window: str,
    num_classes: int,
    batch_size: int,
    white: White | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Computes and writes the parts of a slide's map that are missing.

    A pixel's label is the class of the highest mean probability, the first of equals; it is
    `num_classes`, and all its probabilities are 0, where there is no tissue or white background.

    Args:
      view_read: the slide at the working resolution.
      tissue: tiles without any are neither read nor computed.
      predict: the networks, for batches of always `batch_size` tiles.
      parts: where to; probabilities are written if it has channels for them.
      tile, stride: pixels.
      window: see `window_weights`.
      num_classes: C.
      batch_size: tiles.
      white: the rule of the data set for white background, if it has any.
      progress: called with the number of tiles after each batch, which `plan` adds up.

    Raises:
      InputError: a setting that is none; probabilities that are not finite. What `view_read`,
        `predict` and `progress` raise comes through, and no thread is left behind.
    """

    def finish(part: Part, labels: np.ndarray, probabilities: np.ndarray) -> None:
        kept = _kept(part, view_read, parts.width, parts.height, tissue, white)
        np.copyto(labels, num_classes, where=~kept)
        probabilities *= kept
        parts.write(part, labels, probabilities)
        memory.give_back()

    averaged = averages(
        view_read,
        tissue,
        predict,
        parts.missing(),
        parts.width,
        parts.height,
        tile=tile,
        stride=stride,
        window=window,
        num_classes=num_classes,
        batch_size=batch_size,
        progress=progress,
    )
    with ThreadPoolExecutor(1) as finisher, closing(averaged) as bands:
        finishing: Future | None = None
        for part, x, y, means, covered in bands:
            if y == part.y0:
                labels = np.full(part.shape, num_classes, np.uint8)
                probabilities = np.zeros((parts.channels, *part.shape), np.uint8)
            rows, columns = covered.shape
            here = np.s_[y - part.y0 : y - part.y0 + rows, x - part.x0 : x - part.x0 + columns]
            labels[here] = np.where(covered, means.argmax(axis=-1), num_classes)
            for channel, of_class in enumerate(probabilities):
                of_class[here] = np.rint(255 * means[..., channel])
            if y + rows == part.y1:
                if finishing:
                    finishing.result()
                finishing = finisher.submit(finish, part, labels, probabilities)
        if finishing:
            finishing.result()


def averages(
    view_read: Read,
    tissue: Tissue,
    predict: Predict,
    missing: Sequence[Part],
    width: int,
    height: int,
    *,
    tile: int,
    stride: int,
    window: str,
    num_classes: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Band]:
    """The mean of the tiles' probabilities over the missing parts, band by band.

    Takes what `stitch` takes. Threads read until the generator ends or is closed.
    """
    weights = window_weights(window, tile)
    work = _work(missing, width, height, tissue, tile=tile, stride=stride, batch_size=batch_size)
    for run, batches in work:
        rolling = _RollingMean(run, weights, num_classes)
        with closing(_predicted(view_read, predict, batches, tile, batch_size)) as results:
            for batch, probabilities in results:
                for (x, y), of_tile in zip(batch.tolist(), probabilities):
                    yield from rolling.advance(y)
                    rolling.add(x, y, of_tile)
                if progress:
                    progress(len(batch))
        yield from rolling.advance(run[-1].y1)


def _work(
    missing: Sequence[Part],
    width: int,
    height: int,
    tissue: Tissue,
    *,
    tile: int,
    stride: int,
    batch_size: int,
) -> Iterator[tuple[list[Part], list[np.ndarray]]]:
    """Runs of missing parts, each below the one before, with the batches they take.

    A batch is (n, 2) int, (x, y) of its tiles in the order of the grid. Which tiles are in it does
    not depend on what is missing.
    """
    for run in _runs(missing):
        tiles = _tiles_of_strip(run[0], width, height, tissue, tile, stride)
        batches = [tiles[i : i + batch_size] for i in range(0, len(tiles), batch_size)]
        top, bottom = run[0].y0, run[-1].y1
        yield run, [b for b in batches if ((b[:, 1] < bottom) & (b[:, 1] + tile > top)).any()]


def _runs(missing: Sequence[Part]) -> list[list[Part]]:
    runs: list[list[Part]] = []
    for part in missing:
        if runs and (runs[-1][-1].x0, runs[-1][-1].y1) == (part.x0, part.y0):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _tiles_of_strip(
    strip: Part, width: int, height: int, tissue: Tissue, tile: int, stride: int
) -> np.ndarray:
    """(n, 2) int, (x, y) of the grid's tiles with tissue that reach into a strip, row by row."""
    xs = starts(width, tile, stride)
    xs = xs[(xs < strip.x1) & (xs + tile > strip.x0)].tolist()
    ys = starts(height, tile, stride).tolist()
    size = min(tile, width), min(tile, height)
    return np.array([(x, y) for y in ys for x in xs if tissue.any(x, y, *size)], int).reshape(-1, 2)


def _predicted(
    view_read: Read,
    predict: Predict,
    batches: Iterable[np.ndarray],
    tile: int,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches and their probabilities (n, tile, tile, C), the last one without its filling.

    A batch is waited for when the next one has been handed to `predict`: a device always has work.
    """

    def read(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.full((batch_size, tile, tile, 3), _WHITE, np.uint8)
        for image, (x, y) in zip(images, batch.tolist()):
            image[:] = view_read(x, y, tile, tile)
        return batch, images

    begun: deque[tuple[np.ndarray, Any]] = deque()
    with closing(_ahead(read, batches, READERS)) as loaded:
        for batch, images in loaded:
            begun.append((batch, predict(images)))
            if len(begun) > 1:
                batch, probabilities = begun.popleft()
                yield batch, np.asarray(probabilities)[: len(batch)]
    for batch, probabilities in begun:
        yield batch, np.asarray(probabilities)[: len(batch)]


def _ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Like `map`, but as many threads work at the next results, and no more wait to be asked."""
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


class _RollingMean:
    """Weighted sums over the columns of a strip and the `tile` rows from `top` down.

    Tiles are added from top to bottom; what no later tile can reach is averaged and leaves.
    """

    def __init__(self, run: Sequence[Part], weights: np.ndarray, num_classes: int):
        self._run, self._top = deque(run), run[0].y0
        self._bottom = run[-1].y1
        self._weights = weights
        # Spread over the classes: NumPy multiplies arrays of one shape twice as fast.
        self._class_weights = np.repeat(weights[..., None], num_classes, axis=2)
        columns = run[0].x1 - run[0].x0
        self._sums = np.zeros((len(weights), columns, num_classes), np.float32)
        self._sum_of_weights = np.zeros((len(weights), columns), np.float32)
        self._left = run[0].x0

    def add(self, x: int, y: int, probabilities: np.ndarray) -> None:
        """Adds a tile (tile, tile, C) at (x, y), y at or above `top`: rows above it are done."""
        tile, columns = len(self._weights), self._sums.shape[1]
        cut, x = self._top - y, x - self._left
        if cut < 0 or cut >= tile:
            return  # below the run, or above it: only there for the batch's sake
        into = np.s_[: tile - cut, max(x, 0) : x + tile]
        of_tile = np.s_[cut:, max(-x, 0) : columns - x]
        self._sums[into] += probabilities[of_tile] * self._class_weights[of_tile]
        self._sum_of_weights[into] += self._weights[of_tile]

    def advance(self, y: int) -> Iterator[Band]:
        """Moves `top` down to y, at most to the end of the run, and yields the rows passed."""
        tile = len(self._weights)
        while self._top < min(y, self._bottom):
            part = self._run[0]
            rows = min(y, part.y1, self._top + tile) - self._top
            yield self._band(part, rows)
            for sums in (self._sums, self._sum_of_weights):
                sums[: tile - rows] = sums[rows:]
                sums[tile - rows :] = 0
            self._top += rows
            if self._top == part.y1:
                self._run.popleft()

    def _band(self, part: Part, rows: int) -> Band:
        covered = self._sum_of_weights[:rows] > 0
        columns = np.flatnonzero(covered.any(axis=0))
        x0, x1 = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
        covered = covered[:, x0:x1]
        means = self._sums[:rows, x0:x1]
        means /= (self._sum_of_weights[:rows, x0:x1] + ~covered)[..., None]
        x, y = self._left + x0, self._top
        if not np.isfinite(means.sum()):
            raise InputError(
                f"the networks give no finite probabilities around x={x}, y={y} of the slide (in "
                "pixels at their resolution): evaluate them on patches, or use float32"
            )
        return Band(part, x, y, means, covered)


def _kept(
    part: Part, view_read: Read, width: int, height: int, tissue: Tissue, white: White | None
) -> np.ndarray:
    """(rows, columns) bool of a part: tissue that is not white background."""
    kept = np.array(tissue.pixels(part.x0, part.y0, part.x1 - part.x0, part.y1 - part.y0))
    if white is None:
        return kept
    # The rule is applied to blocks with `min_area` pixels of the slide around them, and is right
    # within the block as if it had seen the slide. Let A be the bright area around a pixel of the
    # block, as far as it lies in the extended block. If A has min_area pixels, so has the whole
    # area. If it has fewer, all of A is within min_area - 2 steps of the pixel, and A's neighbors
    # are within min_area - 1: in the extended block, or off the slide. So A is the whole area.
    y0, y1 = max(part.y0 - white.min_area, 0), min(part.y1 + white.min_area, height)
    for left in range(part.x0, part.x1, _WHITE_COLUMNS):
        right = min(left + _WHITE_COLUMNS, part.x1)
        block = kept[:, left - part.x0 : right - part.x0]
        if block.any():
            x0, x1 = max(left - white.min_area, 0), min(right + white.min_area, width)
            found = white.find(view_read(x0, y0, x1 - x0, y1 - y0))
            block &= ~found[part.y0 - y0 : part.y1 - y0, left - x0 : right - x0]
    return kept
