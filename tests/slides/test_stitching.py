"""Overlapping tiles stitched to one map."""

import threading
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slides.tiny_stitching import (
    CLASSES,
    Mask,
    draw_noise,
    make_reader,
    mark_everything,
    predict,
    stitch_image,
)
from wsss_jax.errors import InputError
from wsss_jax.masks import WhiteRule, find_white_background
from wsss_jax.slides.mapping import stitching
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.stitching import MapInputs, average_tiles, stitch
from wsss_jax.slides.mapping.tiling import Tiling


def _average_by_brute_force(image, tissue, tiling):
    """Averages the whole image at once; (height, width, C) float64, 0 where no tile lies."""
    height, width = image.shape[:2]
    tile, stride = tiling.tile, tiling.stride
    sums = np.zeros((height + tile, width + tile, CLASSES))
    weights = np.zeros((height + tile, width + tile, 1))
    weight = tiling.weights.astype(np.float64)[..., None]
    for y in {*range(0, max(height - tile, 0), stride), max(height - tile, 0)}:
        for x in {*range(0, max(width - tile, 0), stride), max(width - tile, 0)}:
            if tissue.mask[y : y + tile, x : x + tile].any():
                (probabilities,) = predict(make_reader(image)(x, y, tile, tile)[None])
                sums[y : y + tile, x : x + tile] += weight * probabilities
                weights[y : y + tile, x : x + tile] += weight
    return (sums / np.where(weights > 0, weights, 1))[:height, :width]


def _average(image, tissue, missing, tiling):
    """Puts the bands of `average_tiles` together; (height, width, C)."""
    height, width = image.shape[:2]
    whole, times = np.zeros((height, width, CLASSES), np.float32), np.zeros((height, width), int)
    inputs = MapInputs(make_reader(image), tissue, predict, CLASSES)
    for _, x, y, means, covered in average_tiles(inputs, Plan.of(tissue, tiling), missing):
        area = np.s_[y : y + means.shape[0], x : x + means.shape[1]]
        assert not means[~covered].any()
        whole[area] = means
        times[area] += covered
    assert times.max() <= 1
    return whole


@pytest.mark.parametrize(
    "width, height, tile, stride, window",
    [
        *[(311, 203, 64, stride, "flat") for stride in (64, 32, 26, 16)],
        (311, 203, 64, 26, "hann"),
        *[(600, 500, 224, stride, "flat") for stride in (224, 112, 90, 56)],
        (600, 500, 224, 90, "hann"),
        (50, 203, 64, 32, "flat"),
        (20, 30, 64, 32, "hann"),
        (1, 1, 8, 3, "flat"),
    ],
)
def test_means_are_those_of_brute_force(width, height, tile, stride, window):
    image = draw_noise(width, height)
    tissue, tiling = mark_everything(image), Tiling(tile, stride, window, batch_size=5)
    averaged = _average(image, tissue, Layout(width, height, strip=250, rows=90).parts, tiling)
    expected = _average_by_brute_force(image, tissue, tiling)
    np.testing.assert_allclose(averaged, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(averaged.sum(axis=-1), 1, atol=1e-5)


@st.composite
def _cases(draw):
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    tile = draw(st.integers(1, 40))
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        mask[y : y + draw(st.integers(1, 50)), x : x + draw(st.integers(1, 50))] = True
    tiling = Tiling(
        tile,
        stride=draw(st.integers(max(1, tile // 5), tile)),
        batch_size=draw(st.integers(1, 9)),
        window=draw(st.sampled_from(["flat", "hann"])),
    )
    geometry = {"strip": draw(st.integers(5, 100)), "rows": draw(st.integers(5, 100))}
    return draw_noise(width, height, draw(st.integers(0, 9))), Mask(mask), tiling, geometry


@settings(max_examples=40, deadline=None)
@given(_cases())
def test_maps_are_those_of_brute_force_for_any_parts(tmp_path_factory, case):
    image, tissue, tiling, geometry = case
    height = len(image)
    one = stitch_image(tmp_path_factory.mktemp("one"), image, tissue, tiling)
    many = stitch_image(tmp_path_factory.mktemp("many"), image, tissue, tiling, **geometry)

    means = _average_by_brute_force(image, tissue, tiling)
    labels = np.where(tissue.mask, means.argmax(axis=-1), CLASSES)
    second, first = np.sort(means, axis=-1)[..., -2:].transpose(2, 0, 1)
    decided = ~tissue.mask | (first - second > 1e-5)
    # In so small a map a single tie is more than a hundredth.
    is_one_tie = decided.size <= 100 and np.count_nonzero(~decided) == 1
    assert decided.mean() > 0.99 or is_one_tie
    read = one.read(0, height)
    np.testing.assert_array_equal(read[decided], labels[decided])
    np.testing.assert_array_equal(many.read(0, height), read)
    for channel in range(CLASSES):
        read = one.read_probability(channel, 0, height)
        exact = 255 * means[..., channel] * tissue.mask
        assert np.abs(read - exact).max() < 0.5 + 1e-3
        np.testing.assert_array_equal(many.read_probability(channel, 0, height), read)


class _StoppedError(Exception):
    pass


def test_progress_adds_up_to_the_count_and_may_stop_the_run(tmp_path):
    image = draw_noise(100, 80)
    tissue, tiling, done = mark_everything(image), Tiling(32, 16, batch_size=4), []
    stitch_image(tmp_path / "all", image, tissue, tiling, progress=done.append)
    assert sum(done) == Plan.of(tissue, tiling).count() == 6 * 4

    def stop(tiles):
        raise _StoppedError

    with pytest.raises(_StoppedError):
        stitch_image(tmp_path / "stopped", image, tissue, tiling, progress=stop)


def test_tiles_across_a_border_of_strips_count_twice():
    tissue, tiling = Mask(np.ones((16, 30), bool)), Tiling(10, 10, batch_size=3)
    assert Plan.of(tissue, tiling).count(Layout(30, 16, strip=20).parts) == 6
    assert Plan.of(tissue, tiling).count(Layout(30, 16, strip=15).parts) == 8


def test_tiles_without_tissue_are_neither_read_nor_computed(tmp_path):
    image = draw_noise(100, 100)
    tissue = Mask(np.zeros((100, 100), bool))
    tissue.mask[70:75, 70:75] = True
    corners = []

    def read(x, y, width, height):
        corners.append((x, y))
        return make_reader(image)(x, y, width, height)

    parts = Parts(tmp_path, Layout(100, 100), {})
    plan = Plan.of(tissue, Tiling(20, 20, batch_size=3))
    stitch(MapInputs(read, tissue, predict, CLASSES), plan, parts)
    assert corners == [(60, 60)]
    assert ((parts.read(0, 100) < CLASSES) == tissue.mask).all()


def test_a_slide_without_tissue_needs_no_network(tmp_path):
    image = draw_noise(50, 40)
    nothing, tiling = Mask(np.zeros((40, 50), bool)), Tiling(16, 8, batch_size=5)
    parts = stitch_image(tmp_path, image, nothing, tiling, predict=None, white=WhiteRule())
    assert (parts.read(0, 40) == CLASSES).all()
    assert not parts.read_probability(0, 0, 40).any()


@pytest.mark.parametrize("min_area", [1, 2, 12, 50])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.95])
def test_white_is_what_the_rule_finds_on_the_whole_slide(tmp_path, monkeypatch, min_area, share):
    monkeypatch.setattr(stitching, "WHITE_COLUMNS", 40)
    bright = np.random.default_rng(min_area).random((70, 170)) < share
    image = np.where(bright[..., None], 230, 90).astype(np.uint8).repeat(3, axis=-1)
    rule, tiling = WhiteRule(min_area=min_area), Tiling(32, 32, batch_size=5)
    tissue = mark_everything(image)
    tissue.mask[:, 100:] = False
    parts = stitch_image(tmp_path, image, tissue, tiling, white=rule, strip=65, rows=25)
    excluded = parts.read(0, 70) == CLASSES
    np.testing.assert_array_equal(excluded, find_white_background(image, rule) | ~tissue.mask)
    assert not parts.read_probability(1, 0, 70)[excluded].any()


def test_ties_go_to_the_first_class(tmp_path):
    def predict_equal(images):
        return np.full((*images.shape[:3], CLASSES), 1 / CLASSES, np.float32)

    image, tiling = draw_noise(50, 40), Tiling(16, 5, batch_size=5)
    parts = stitch_image(tmp_path, image, mark_everything(image), tiling, predict=predict_equal)
    assert (parts.read(0, 40) == 0).all()


@pytest.mark.parametrize("failing_call", [0, 40])
def test_an_error_while_reading_reaches_the_caller(tmp_path, failing_call):
    image = draw_noise(200, 200)
    calls, threads = [], threading.active_count()

    def fail(x, y, width, height):
        calls.append(1)
        if len(calls) > failing_call:
            raise InputError("slide.svs: a tile is damaged")
        return make_reader(image)(x, y, width, height)

    parts = Parts(tmp_path, Layout(200, 200, rows=64), {})
    tissue = mark_everything(image)
    inputs = MapInputs(fail, tissue, predict, CLASSES)
    with pytest.raises(InputError, match="a tile is damaged") as caught:
        stitch(inputs, Plan.of(tissue, Tiling(32, 16, batch_size=4)), parts)
    assert threading.active_count() == threads, caught.value
    assert len(calls) < failing_call + 4 * 5


def test_an_error_while_writing_reaches_the_caller(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Parts, "write", fail)
    image = draw_noise(60, 60)
    with pytest.raises(OSError, match="No space left"):
        stitch_image(tmp_path, image, mark_everything(image), Tiling(32, 16, batch_size=5))


def test_probabilities_that_are_not_finite_are_refused(tmp_path):
    def predict_nan(images):
        probabilities = predict(images)
        probabilities[-1, 3, 3, 1] = np.nan
        return probabilities

    image, tiling = draw_noise(60, 60), Tiling(32, 16, batch_size=5)
    with pytest.raises(
        InputError, match=r"no finite probabilities around x=.*, or set --config\.precision=float32"
    ):
        stitch_image(tmp_path, image, mark_everything(image), tiling, predict=predict_nan)


def test_a_batch_is_waited_for_after_the_next_was_started(tmp_path):
    events = []

    class LateArray(NamedTuple):
        number: int
        probabilities: np.ndarray

        def __array__(self, dtype=None, copy=None):
            events.append(f"wait {self.number}")
            return self.probabilities

    def predict_late(images):
        number = sum(event.startswith("start") for event in events)
        events.append(f"start {number}")
        return LateArray(number, predict(images))

    image, tiling = draw_noise(64, 48), Tiling(16, 16, batch_size=5)
    stitch_image(tmp_path, image, mark_everything(image), tiling, predict=predict_late)
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]
