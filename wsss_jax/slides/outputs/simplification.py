"""Simplifies the outlines of large regions: what GEOS does with preserved topology, in less time.

GEOS simplifies each ring as Douglas and Peucker do: a section becomes a straight line if none of
its corners is farther from the line than the tolerance; otherwise it is split at the farthest one.
A line that would meet another part of the outlines is split, too. GEOS tests every line against all
rings of the region and against segments of a quadtree whose upper nodes fill up: of a noisy map two
regions of 300,000 corners and 3,000 holes took nine tenths of the time of all 13,540.

Here the sections are found without that test, and lines that may meet something are looked up for
all sections at once, on the grid of pixels. Only these few are then taken in the order of GEOS and
tested like there, with whole numbers.
"""

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import shapely

from wsss_jax.slides.outputs.segments import jumps, may_meet, measure_distance, meet, orient

_MIN_CORNERS = 4  # of a simplified ring, the first one counted twice
_TALL = 64  # pixels: sections taller than this are looked up one by one
_Pair = tuple[int, int]


def simplify_rings(rings: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """Simplifies the rings of one region, like `shapely.simplify` of the polygon.

    Args:
      rings: the outline and the holes, see `regions.Region`.
      tolerance: farthest that an outline may move, pixels.

    Returns:
      a ring for each, (n, 2) float64.
    """
    sections = _Sections(rings, tolerance)
    sections.simplify()
    return sections.list_rings()


class _Sections:
    """The rings of a region, cut into sections that become a line each unless it meets something.

    The closing point of a ring is a point of its own. Points, sections and rings are numbered in
    the order in which GEOS takes them.

    Attributes:
      points: (N, 2) int64 of all rings.
      ring_of: (N,) int64, the ring of each point.
      starts, ends: (R,) int64, first and last point of each ring.
      first, last: (S,) int64, first and last point of each section; sections share these.
      is_line: (S,) bool, whether a section is to become a line without the points between.
      whole: sections that are a whole ring, so short that its number of corners counts.
    """

    def __init__(self, rings: Sequence[np.ndarray], tolerance: float):
        """Cuts the rings into sections."""
        self.tolerance = tolerance
        counts = np.array([len(ring) for ring in rings])
        self.points = np.concatenate(rings)
        self.ends = np.cumsum(counts) - 1
        self.starts = self.ends - counts + 1
        self.ring_of = np.repeat(np.arange(len(rings)), counts)
        kept = self._find_kept()
        same = self.ring_of[kept[1:]] == self.ring_of[kept[:-1]]
        self.first, self.last = kept[:-1][same], kept[1:][same]
        is_whole = (self.first == self.starts[self.ring_of[self.first]]) & (
            self.last == self.ends[self.ring_of[self.first]]
        )
        self.whole = set(np.flatnonzero(is_whole).tolist())
        self.is_line = (self.last > self.first + 1) & ~is_whole
        corners = [np.empty(0)] * 2
        for side, reduce in enumerate((np.minimum, np.maximum)):
            inner = reduce.reduceat(self.points, self.first, axis=0)
            corners[side] = reduce(inner, self.points[self.last])
        self.lower, self.upper = corners  # (S, 2): the box of each section

    def _find_kept(self) -> np.ndarray:
        """Finds the points at which Douglas and Peucker cut, whatever a line meets."""
        numbered = np.column_stack([self.points, np.arange(len(self.points))]).astype(np.float64)
        lines = shapely.linestrings(numbered, indices=self.ring_of)
        lines = shapely.simplify(lines, self.tolerance, preserve_topology=False)
        is_kept = np.zeros(len(self.points), bool)
        is_kept[shapely.get_coordinates(lines, include_z=True)[:, 2].astype(np.int64)] = True
        for start, end in zip(self.starts.tolist(), self.ends.tolist()):
            # The first two cuts are made even within the tolerance: rings keep four corners.
            distances = ((self.points[start:end] - self.points[start]) ** 2).sum(axis=1)
            farthest = start + int(np.argmax(distances))
            before = is_kept[start + 1 : farthest].any() or farthest == start + 1
            after = is_kept[farthest + 1 : end].any() or farthest == end - 1
            if not (before and after):
                is_kept[start + 1 : end] = False
        return np.flatnonzero(is_kept)

    # --- lines that may meet something ---

    def find_conflicts(self) -> np.ndarray:
        """Finds sections whose line may meet another section, or its line; (S,) bool, too many."""
        found = np.zeros(len(self.first), bool)
        steps = np.flatnonzero(self.ring_of[1:] == self.ring_of[:-1])
        section = np.searchsorted(self.first, steps, side="right") - 1
        lines = np.flatnonzero(self.is_line)
        origin = self.points.min(axis=0) - 1
        from_points, to_points = (self.points[at[lines]] - origin for at in (self.first, self.last))
        begins, stops = self.points[steps] - origin, self.points[steps + 1] - origin
        stride = int(self.points.max() - origin.min()) + 2
        for axis in (0, 1):  # edges of pixels along x, then along y
            along = [axis, 1 - axis]
            runs = np.flatnonzero(begins[:, axis] != stops[:, axis])
            low = np.minimum(begins, stops)[runs][:, along]
            lengths = np.abs(stops - begins)[runs, axis]
            keys = np.repeat(low[:, 1] * stride + low[:, 0], lengths) + _count_up(lengths)
            order = np.argsort(keys)
            table = keys[order], np.repeat(section[runs], lengths)[order]
            for at, owner in _list_edges(from_points[:, along], to_points[:, along], stride):
                position = np.minimum(np.searchsorted(table[0], at), len(table[0]) - 1)
                meets = (table[0][position] == at) & (table[1][position] != lines[owner])
                found[lines[owner[meets]]] = True
        found[self._find_touching()] = True
        found &= self.is_line
        for number, point in self._list_inside():
            if jumps(self.points[self.first[number] : self.last[number] + 1].tolist(), point):
                found[number] = True
        return found

    def _find_touching(self) -> np.ndarray:
        """Finds sections that share a point with another one, and whose lines may meet."""
        passed = np.setdiff1d(np.arange(len(self.points)), self.ends, assume_unique=True)
        x, y = self.points[passed].T
        order = np.lexsort((passed, y, x))
        same = (np.diff(x[order]) == 0) & (np.diff(y[order]) == 0)
        sections = []  # of each of the two points: the one that it lies in, and that before it
        for point in (passed[order[:-1][same]], passed[order[1:][same]]):
            number = np.searchsorted(self.first, point, side="right") - 1
            ring = self.ring_of[point]
            end = np.where(point == self.starts[ring], self.ends[ring], point)
            before = np.searchsorted(self.first, end, side="left") - 1
            sections.append((number, np.where(self.first[number] == point, before, number)))
        found = []
        for one in sections[0]:
            for other in sections[1]:
                points = (self.points[at] for at in (self.first[one], self.last[one]))
                others = (self.points[at] for at in (self.first[other], self.last[other]))
                met = (one != other) & may_meet(*points, *others)
                found += [one[met], other[met]]
        return np.concatenate(found)

    def _get_line(self, number: int) -> tuple[list[int], list[int]]:
        return self.points[self.first[number]].tolist(), self.points[self.last[number]].tolist()

    def _list_inside(self) -> Iterator[tuple[int, list[int]]]:
        """Yields (section, point): the second point of a later ring that is in a section's box."""
        seconds = self.points[self.starts + 1]
        order = np.argsort(seconds[:, 0])
        seconds = seconds[order]
        lines = np.flatnonzero(self.is_line)
        low = np.searchsorted(seconds[:, 0], self.lower[lines, 0], side="left")
        counts = np.searchsorted(seconds[:, 0], self.upper[lines, 0], side="right") - low
        ring = np.repeat(low, counts) + _count_up(counts)
        number = np.repeat(lines, counts)
        inside = (seconds[ring, 1] >= self.lower[number, 1]) & (
            seconds[ring, 1] <= self.upper[number, 1]
        )
        inside &= order[ring] > self.ring_of[self.first[number]]
        yield from zip(number[inside].tolist(), seconds[ring[inside]].tolist())

    # --- the order of GEOS ---

    def simplify(self) -> None:
        """Makes the lines: `results` of sections that do not become one line, `merged` of rings."""
        self.results: dict[int, list[_Pair]] = {}  # section -> its lines
        self.merged: dict[int, _Pair] = {}  # ring -> the line over its start
        # Boxes of the merged lines; a ring that has none yet is nowhere.
        self._merged_lower = np.full((len(self.starts), 2), np.iinfo(np.int64).max)
        self._merged_upper = np.full((len(self.starts), 2), np.iinfo(np.int64).min)
        self._removed: set[_Pair] = set()  # lines that a merged one replaced
        self._seconds = self.points[self.starts + 1]
        heights = self.upper[:, 1] - self.lower[:, 1]
        self._tall = np.flatnonzero(heights > _TALL)
        flat = np.flatnonzero(heights <= _TALL)
        self._flat = flat[np.argsort(self.lower[flat, 1], kind="stable")]
        self._flat_y = self.lower[self._flat, 1]
        self._current = 0
        ends = np.searchsorted(self.first, self.ends, side="left") - 1  # last section of each ring
        queue = [(number, 0) for number in {*np.flatnonzero(self.find_conflicts()), *self.whole}]
        queue = [*((int(number), kind) for number, kind in queue), *((int(n), 1) for n in ends)]
        heapq.heapify(queue)
        self._queue, self._queued = queue, {number for number, kind in queue if not kind}
        while self._queue:
            number, is_end = heapq.heappop(self._queue)
            self._current = number
            if is_end:
                self._merge_ends(number)
            else:
                self._simplify_section(number)

    def _simplify_section(self, number: int) -> None:
        whole = number in self.whole
        lines = self.results[number] = []
        # The sections still to be made, the next one last.
        self._left = [(int(self.first[number]), int(self.last[number]), 0 if whole else 3)]
        while self._left:
            i, j, depth = self._left.pop()
            depth += 1
            if i + 1 == j:
                lines.append((i, j))
                continue
            size = len(lines) + 1 if lines else 0
            farthest, distance = self._find_farthest(i, j)
            allowed = distance <= self.tolerance
            if whole and size < _MIN_CORNERS and depth + 1 < _MIN_CORNERS:
                allowed = False
            if allowed and self._is_free(i, j):
                lines.append((i, j))
                continue
            self._left += [(farthest, j, depth), (i, farthest, depth)]
        if lines != [(int(self.first[number]), int(self.last[number]))]:
            for line in lines:
                if line[1] > line[0] + 1:
                    self._queue_met(line)

    def _merge_ends(self, number: int) -> None:
        """Leaves out the start of the ring that ends with a section, if that changes little."""
        ring = int(self.ring_of[self.first[number]])
        first = int(np.searchsorted(self.first, self.starts[ring]))
        size = number - first + 2
        if size <= _MIN_CORNERS:
            size = sum(len(self._list_lines(each)) for each in range(first, number + 1)) + 1
        if size <= _MIN_CORNERS:
            return
        before, after = self._list_lines(number)[-1], self._list_lines(first)[0]
        p, q = (self.points[at].tolist() for at in (before[0], after[1]))
        if measure_distance(self.points[after[0]].tolist(), p, q) > self.tolerance:
            return
        line = before[0], after[1]
        corner = self.points[after[0]].tolist()
        if orient(p, corner, q) != 0 and not self._is_free(*line, corner):
            return
        self.merged[ring] = line
        self._merged_lower[ring], self._merged_upper[ring] = np.minimum(p, q), np.maximum(p, q)
        # Segments of the input stay in the index of GEOS; lines do not.
        self._removed |= {each for each in (before, after) if each[1] > each[0] + 1}
        self._queue_met(line)

    def _list_lines(self, number: int) -> list[_Pair]:
        return self.results.get(number) or [(int(self.first[number]), int(self.last[number]))]

    def _queue_met(self, line: _Pair) -> None:
        """Queues the later sections whose line meets a line that was not expected."""
        p, q = (self.points[at].tolist() for at in line)
        for number in self._find_near(p, q):
            is_open = number > self._current and self.is_line[number]
            is_open &= number not in self._queued
            if is_open and meet(*self._get_line(number), p, q):
                self._queued.add(number)
                heapq.heappush(self._queue, (number, 0))

    def _find_near(self, p: list[int], q: list[int]) -> list[int]:
        """Finds the sections whose box meets that of a line."""
        (x0, x1), (y0, y1) = sorted((p[0], q[0])), sorted((p[1], q[1]))
        begin, stop = np.searchsorted(self._flat_y, (y0 - _TALL, y1 + 1))
        near = np.concatenate([self._flat[begin:stop], self._tall])
        lower, upper = self.lower[near], self.upper[near]
        inside = (lower[:, 0] <= x1) & (upper[:, 0] >= x0)
        inside &= (lower[:, 1] <= y1) & (upper[:, 1] >= y0)
        return near[inside].tolist()

    def _is_free(self, i: int, j: int, corner: list[int] | None = None) -> bool:
        """Whether a line from point i to j meets nothing of what there is now.

        `corner`: the start of a ring that the line leaves out; without, it replaces a section.
        """
        p, q = self.points[i].tolist(), self.points[j].tolist()
        for number in self._find_near(p, q):
            for a, b in self._list_obstacles(number, None if corner else j):
                line = self.points[a].tolist(), self.points[b].tolist()
                if (a, b) not in self._removed and meet(p, q, *line):
                    return False
        near = (self._merged_lower <= np.maximum(p, q)) & (self._merged_upper >= np.minimum(p, q))
        for ring in np.flatnonzero(near.all(axis=1)).tolist():
            a, b = self.merged[ring]
            if meet(p, q, self.points[a].tolist(), self.points[b].tolist()):
                return False
        path = [p, corner, q] if corner else self.points[i : j + 1].tolist()
        lower, upper = np.min(path, axis=0), np.max(path, axis=0)
        inside = ((self._seconds >= lower) & (self._seconds <= upper)).all(axis=1)
        # GEOS compares with the rings that are still to come.
        inside[: self.ring_of[i] + 1] = False
        return not any(jumps(path, point) for point in self._seconds[inside].tolist())

    def _list_obstacles(self, number: int, stop: int | None) -> Iterator[_Pair]:
        """Yields the lines or segments that a section is made of now.

        `stop`: where a candidate in the current section ends; None once that is finished.
        """
        last = int(self.last[number])
        if number < self._current or (number == self._current and stop is None):
            yield from self._list_lines(number)
        elif number > self._current or stop is None:
            yield from ((k, k + 1) for k in range(int(self.first[number]), last))
        else:
            yield from self.results[number]
            yield from ((k, k + 1) for k in range(stop, last))

    def _find_farthest(self, i: int, j: int) -> tuple[int, float]:
        p, q = self.points[i].tolist(), self.points[j].tolist()
        farthest, most = i, -1.0
        for k, point in enumerate(self.points[i + 1 : j].tolist(), start=i + 1):
            distance = measure_distance(point, p, q)
            if distance > most:
                farthest, most = k, distance
        return farthest, most

    def list_rings(self) -> list[np.ndarray]:
        """Returns the simplified rings."""
        is_kept = np.zeros(len(self.points), bool)
        is_kept[self.first] = is_kept[self.last] = True
        for lines in self.results.values():
            is_kept[[line[0] for line in lines]] = True
        rings = []
        for ring, (start, end) in enumerate(zip(self.starts.tolist(), self.ends.tolist())):
            corners = self.points[start : end + 1][is_kept[start : end + 1]].astype(np.float64)
            if ring in self.merged:
                corners = np.concatenate([corners[-2:-1], corners[1:-1]])
            rings.append(corners)
        return rings


def _count_up(counts: np.ndarray) -> np.ndarray:
    """Counts up from 0 as often as each number says: 0, 1, ..., counts[0] - 1, 0, 1, ..."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _list_edges(
    begins: np.ndarray, stops: np.ndarray, stride: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the edges of pixels along the first axis that lines meet between their ends.

    Args:
      begins, stops: (L, 2) int64 of the lines, the axis of the edges first.
      stride: of the keys: second coordinate * stride + first.

    Yields:
      keys of edges, and the number of the line of each.
    """
    change = stops - begins
    # Rows that a line crosses: it meets the edge there, or both edges beside a corner.
    counts = np.maximum(np.abs(change[:, 1]) - 1, 0)
    line = np.repeat(np.arange(len(begins)), counts)
    row = np.minimum(begins, stops)[line, 1] + 1 + _count_up(counts)
    across, rest = np.divmod((row - begins[line, 1]) * change[line, 0], change[line, 1])
    keys = row * stride + begins[line, 0] + across
    yield keys, line
    yield keys[rest == 0] - 1, line[rest == 0]
    # Edges that a line lies on.
    flat = np.flatnonzero(change[:, 1] == 0)
    counts = np.abs(change[flat, 0])
    line = np.repeat(flat, counts)
    yield (
        begins[line, 1] * stride + np.minimum(begins, stops)[line, 0] + _count_up(counts),
        line,
    )
