"""Overlapping tiles to one map of the slide: probabilities averaged at every pixel, then argmax.

Tiles lie on one grid over the whole slide. The work goes strip by strip (see `parts`), in each
strip from top to bottom, and sums are kept for as many rows as a tile has: memory depends on the
tile and on the width of a strip, never on the slide. Tiles across the border of two strips are
computed for both.

The map is the same to the last bit however often a run was killed. At each pixel the tiles are
added in the order of the grid, and a tile always shares its batch with the same others (a network
may round differently in another batch): batches are cut from all tiles of a strip, and a resumed
run computes again the batches that reach into the parts still missing.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wsss_jax.masks import WhiteRule, find_white_background
from wsss_jax.slides.mapping import memory
from wsss_jax.slides.mapping.parts import Layout, Part, Parts
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


class MapInputs(NamedTuple):
    """What a map is computed from.

    Attributes:
      read: the slide at the working resolution.
      tissue: of the slide; tiles without any are neither read nor computed.
      predict: the networks, for batches of always the same number of tiles.
      num_classes: C.
      white: the rule for white background, of data sets that have one.
    """

    read: Read
    tissue: Tissue
    predict: Predict
    num_classes: int
    white: WhiteRule | None = None


def count_tiles(tissue: Tissue, tiling: Tiling, missing: Sequence[Part] | None = None) -> int:
    """Counts the tiles that `stitch` computes for `missing` parts, by default all of the slide.

    Tiles of two strips count twice.
    """
    missing = Layout(tissue.width, tissue.height).parts if missing is None else missing
    work = _plan_batches(tissue, tiling, missing)
    return sum(len(batch) for _, batches in work for batch in batches)


def stitch(
    inputs: MapInputs,
    tiling: Tiling,
    parts: Parts,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Computes and writes the missing parts of a slide's map.

    A pixel's label is the class of the highest mean probability, the first of equals. Where there
    is no tissue or white background, the label is `num_classes` and all probabilities are 0.

    Args:
      inputs, tiling: what the map is computed from, and how it is cut.
      parts: where to write; probabilities are written if it has channels for them.
      progress: called with the number of tiles after each batch; they add up to `count_tiles`.

    Raises:
      InputError: probabilities that are not finite. Errors of `inputs` and `progress` pass through,
        and no thread is left running.
    """
    num_classes = inputs.num_classes

    def finish(part: Part, labels: np.ndarray, probabilities: np.ndarray) -> None:
        tissue = _find_tissue(part, inputs)
        np.copyto(labels, num_classes, where=~tissue)
        probabilities *= tissue
        parts.write(part, labels, probabilities)
        memory.release_freed()

    averages = average_tiles(inputs, tiling, parts.missing, progress)
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


def average_tiles(
    inputs: MapInputs,
    tiling: Tiling,
    missing: Sequence[Part],
    progress: Callable[[int], None] | None = None,
) -> Generator[Band]:
    """Yields the mean of the tiles' probabilities over the missing parts, band by band.

    Takes the arguments of `stitch`. Threads read until the generator ends or is closed.
    """
    for run, batches in _plan_batches(inputs.tissue, tiling, missing):
        rolling = RollingMean(run, tiling.weights, inputs.num_classes)
        with closing(predict_batches(inputs, tiling, batches)) as results:
            for batch, probabilities in results:
                for (x, y), probability in zip(batch.tolist(), probabilities):
                    yield from rolling.advance(y)
                    rolling.add(x, y, probability)
                if progress:
                    progress(len(batch))
        yield from rolling.advance(run[-1].y1)


def _plan_batches(
    tissue: Tissue, tiling: Tiling, missing: Sequence[Part]
) -> Iterator[tuple[list[Part], list[np.ndarray]]]:
    """Yields runs of missing parts, each part below the one before, with the batches they need.

    A batch is (n, 2) int, (x, y) of its tiles in the order of the grid. It has the same tiles
    whatever is missing.
    """
    size = tiling.batch_size
    for run in _group_runs(missing):
        tiles = _list_tiles(run[0], tissue, tiling)
        batches = [tiles[i : i + size] for i in range(0, len(tiles), size)]
        top, bottom = run[0].y0, run[-1].y1
        needed = [b for b in batches if ((b[:, 1] < bottom) & (b[:, 1] + tiling.tile > top)).any()]
        yield run, needed


def _group_runs(missing: Sequence[Part]) -> list[list[Part]]:
    runs: list[list[Part]] = []
    for part in missing:
        if runs and (runs[-1][-1].x0, runs[-1][-1].y1) == (part.x0, part.y0):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _list_tiles(strip: Part, tissue: Tissue, tiling: Tiling) -> np.ndarray:
    """Lists (x, y) of the tiles with tissue that reach into a strip, row by row; (n, 2) int."""
    xs = tiling.place(tissue.width)
    xs = xs[(xs < strip.x1) & (xs + tiling.tile > strip.x0)].tolist()
    ys = tiling.place(tissue.height).tolist()
    size = min(tiling.tile, tissue.width), min(tiling.tile, tissue.height)
    tiles = [(x, y) for y in ys for x in xs if tissue.has_tissue(x, y, *size)]
    return np.array(tiles, int).reshape(-1, 2)


def predict_batches(
    inputs: MapInputs, tiling: Tiling, batches: Iterable[np.ndarray]
) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches and their probabilities (n, tile, tile, C), the last one without its filling.

    A batch is (n, 2) int, (x, y) of its tiles, with n up to `tiling.batch_size`. One is waited for
    after the next one was handed to `predict`: a device always has work.
    """
    tile = tiling.tile

    def read(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = np.full((tiling.batch_size, tile, tile, 3), _WHITE, np.uint8)
        for image, (x, y) in zip(images, batch.tolist()):
            image[:] = inputs.read(x, y, tile, tile)
        return batch, images

    started: deque[tuple[np.ndarray, Any]] = deque()
    with closing(_map_in_threads(read, batches, READERS)) as loaded:
        for batch, images in loaded:
            started.append((batch, inputs.predict(images)))
            if len(started) > 1:
                batch, probabilities = started.popleft()
                yield batch, np.asarray(probabilities)[: len(batch)]
    for batch, probabilities in started:
        yield batch, np.asarray(probabilities)[: len(batch)]


def _map_in_threads(
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


def _find_tissue(part: Part, inputs: MapInputs) -> np.ndarray:
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
