import threading
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_jax.errors import InputError
from wsss_jax.masks import white_background
from wsss_jax.slides.mapping import stitching
from wsss_jax.slides.mapping.parts import Part, Parts, layout
from wsss_jax.slides.mapping.stitching import White, averages, plan, starts, stitch, window_weights

CLASSES = 4
KERNEL = np.random.default_rng(5).normal(0, 0.01, (3, 3, 3, CLASSES)).astype(np.float32)


class _Mask(NamedTuple):
    """Tissue given pixel by pixel."""

    mask: np.ndarray

    def any(self, x, y, width, height):
        return bool(self.mask[y : y + height, x : x + width].any())

    def pixels(self, x, y, width, height):
        return self.mask[y : y + height, x : x + width]


def _everything(image):
    return _Mask(np.ones(image.shape[:2], bool))


def _random_image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _reader(image):
    """`view_read` of an image: white outside."""

    def read(x, y, width, height):
        found = np.full((height, width, 3), 255, np.uint8)
        inside = image[y : y + height, x : x + width]
        found[: inside.shape[0], : inside.shape[1]] = inside
        return found

    return read


def _predict(images):
    """A 3 x 3 convolution with zeros around each tile, so that borders show, and softmax."""
    size = images.shape[1]
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    logits = sum(
        padded[:, i : i + size, j : j + size] @ KERNEL[i, j] for i in range(3) for j in range(3)
    )
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _brute_force(image, tissue, tile, stride, window):
    """Means (height, width, C) float64 over the whole image, 0 where no tile lies."""
    height, width = image.shape[:2]
    sums = np.zeros((height + tile, width + tile, CLASSES))
    weights = np.zeros((height + tile, width + tile, 1))
    weight = window_weights(window, tile).astype(np.float64)[..., None]
    for y in {*range(0, max(height - tile, 0), stride), max(height - tile, 0)}:
        for x in {*range(0, max(width - tile, 0), stride), max(width - tile, 0)}:
            if tissue.mask[y : y + tile, x : x + tile].any():
                (of_tile,) = _predict(_reader(image)(x, y, tile, tile)[None])
                sums[y : y + tile, x : x + tile] += weight * of_tile
                weights[y : y + tile, x : x + tile] += weight
    return (sums / np.where(weights > 0, weights, 1))[:height, :width]


def _averaged(image, tissue, missing, **settings):
    """The bands of `averages` put together: means (height, width, C) and how often each pixel."""
    height, width = image.shape[:2]
    found, times = np.zeros((height, width, CLASSES), np.float32), np.zeros((height, width), int)
    settings = {"window": "flat", "num_classes": CLASSES, "batch_size": 5, **settings}
    bands = averages(_reader(image), tissue, _predict, missing, width, height, **settings)
    for _, x, y, means, covered in bands:
        here = np.s_[y : y + means.shape[0], x : x + means.shape[1]]
        assert not means[~covered].any()
        found[here] = means
        times[here] += covered
    assert times.max() <= 1
    return found


def _stitched(folder, image, tissue, predict=_predict, geometry=None, channels=CLASSES, **settings):
    height, width = image.shape[:2]
    geometry = geometry or {}
    parts = Parts(folder, width, height, {}, channels=channels, **geometry)
    settings = {"window": "flat", "num_classes": CLASSES, "batch_size": 5, **settings}
    stitch(_reader(image), tissue, predict, parts, **settings)
    assert not parts.missing()
    return parts


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "length, tile, stride, expected",
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (11, 4, 2, [0, 2, 4, 6, 7]),
        (9, 4, 4, [0, 4, 5]),
        (4, 4, 1, [0]),
        (3, 4, 2, [0]),
    ],
)
def test_tiles_start_every_stride_and_end_with_the_axis(length, tile, stride, expected):
    np.testing.assert_array_equal(starts(length, tile, stride), expected)


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(InputError, match=rf"stride of {stride} .*1 to 4"):
        starts(10, 4, stride)


def test_windows_weigh_every_pixel():
    assert (window_weights("flat", 6) == 1).all()
    hann = window_weights("hann", 6)
    assert (hann > 0).all() and hann.argmax() in (14, 15, 20, 21)
    np.testing.assert_array_equal(hann, hann[::-1, ::-1].T)
    with pytest.raises(InputError, match="choose flat or hann"):
        window_weights("gauss", 6)


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
    image = _random_image(width, height)
    tissue = _everything(image)
    missing = layout(width, height, strip=250, rows=90)
    found = _averaged(image, tissue, missing, tile=tile, stride=stride, window=window)
    expected = _brute_force(image, tissue, tile, stride, window)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


@st.composite
def _cases(draw):
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    tile = draw(st.integers(1, 40))
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        mask[y : y + draw(st.integers(1, 50)), x : x + draw(st.integers(1, 50))] = True
    settings = {
        "tile": tile,
        "stride": draw(st.integers(max(1, tile // 5), tile)),
        "batch_size": draw(st.integers(1, 9)),
        "window": draw(st.sampled_from(["flat", "hann"])),
    }
    geometry = {"strip": draw(st.integers(5, 100)), "rows": draw(st.integers(5, 100))}
    return _random_image(width, height, draw(st.integers(0, 9))), _Mask(mask), settings, geometry


@settings(max_examples=40, deadline=None)
@given(_cases())
def test_maps_are_those_of_brute_force_whatever_the_parts(tmp_path_factory, case):
    image, tissue, settings, geometry = case
    height = len(image)
    one = _stitched(tmp_path_factory.mktemp("one"), image, tissue, **settings)
    many = _stitched(tmp_path_factory.mktemp("many"), image, tissue, geometry=geometry, **settings)

    means = _brute_force(image, tissue, settings["tile"], settings["stride"], settings["window"])
    labels = np.where(tissue.mask, means.argmax(axis=-1), CLASSES)
    second, first = np.sort(means, axis=-1)[..., -2:].transpose(2, 0, 1)
    decided = ~tissue.mask | (first - second > 1e-5)
    # In so small a map a single tie is more than a hundredth.
    is_one_tie = decided.size <= 100 and np.count_nonzero(~decided) == 1
    assert decided.mean() > 0.99 or is_one_tie
    found = one.read(0, height)
    np.testing.assert_array_equal(found[decided], labels[decided])
    np.testing.assert_array_equal(many.read(0, height), found)
    for channel in range(CLASSES):
        found = one.read_probability(channel, 0, height)
        exact = 255 * means[..., channel] * tissue.mask
        assert np.abs(found - exact).max() < 0.5 + 1e-3
        np.testing.assert_array_equal(many.read_probability(channel, 0, height), found)


class _Stopped(Exception):
    pass


def _rounding_by_batch(images):
    """A network whose rounding depends on which images share a batch, and on their order."""
    company = images.astype(np.int64).sum(axis=(1, 2, 3)) @ np.arange(1, len(images) + 1)
    return _predict(images) * np.float32(1 + company % 97 * 1e-3)


def _positions(images):
    """(x, y) of the tiles of a batch cut from `_located_image`, without the filling."""
    return [(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in images if image[0, 0, 0] < 255]


def _located_image(width, height):
    """An image whose red and green say where a pixel is."""
    image = _random_image(width, height)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def _recording(predict, calls=None):
    """`predict`, a list of the tiles of the batches it gets, and an end after a number of them."""
    batches = []

    def recording(images):
        if len(batches) == calls:
            raise _Stopped
        batches.append(_positions(images))
        return predict(images)

    return recording, batches


def _reaches(batch, parts, tile):
    return any(
        x < part.x1 and x + tile > part.x0 and y < part.y1 and y + tile > part.y0
        for x, y in batch
        for part in parts
    )


@pytest.mark.parametrize("rows", [30, 10])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, rows):
    image, tile = _located_image(130, 100), 24
    tissue = _everything(image)
    tissue.mask[40:80, 30:80] = False
    settings = {"tile": tile, "stride": 7, "batch_size": 8}
    geometry = {"strip": 60, "rows": rows}
    run = partial(_stitched, image=image, tissue=tissue, geometry=geometry, **settings)
    predict, batches = _recording(_rounding_by_batch)
    run(tmp_path / "whole", predict=predict)
    expected = _contents(tmp_path / "whole")
    missing = layout(130, 100, **geometry)
    assert sum(map(len, batches)) == plan(130, 100, tissue, **settings, missing=missing)

    missing_parts = set()
    for stop in range(0, len(batches), 5):
        folder = tmp_path / str(stop)
        with pytest.raises(_Stopped):
            run(folder, predict=_recording(_rounding_by_batch, stop)[0])
        missing = Parts(folder, 130, 100, {}, channels=CLASSES, **geometry).missing()
        predict, again = _recording(_rounding_by_batch)
        run(folder, predict=predict)
        assert _contents(folder) == expected
        assert all(batch in batches and _reaches(batch, missing, tile) for batch in again)
        assert sum(map(len, again)) == plan(130, 100, tissue, **settings, missing=missing)
        missing_parts.add(len(missing))
    assert len(missing_parts) > 4  # it was stopped here and there


def test_damaged_parts_alone_are_made_again(tmp_path):
    image, tile = _located_image(90, 120), 16
    geometry = {"strip": 50, "rows": 20}
    run = partial(
        _stitched, tmp_path, image, _everything(image), geometry=geometry, tile=tile, stride=8
    )
    predict, batches = _recording(_rounding_by_batch)
    run(predict=predict)
    expected = _contents(tmp_path)
    for name in ("part_x0000000_y0000040.bin", "part_x0000050_y0000100.bin"):
        (tmp_path / name).write_bytes(expected[name][:-1])
    missing = Parts(tmp_path, 90, 120, {}, channels=CLASSES, **geometry).missing()
    assert missing == [Part(0, 40, 50, 60), Part(50, 100, 90, 120)]
    predict, again = _recording(_rounding_by_batch)
    run(predict=predict)
    assert _contents(tmp_path) == expected
    assert len(again) < len(batches) / 2


def test_progress_adds_up_to_the_plan_and_may_stop_the_run(tmp_path):
    image = _random_image(100, 80)
    tissue, done = _everything(image), []
    settings = {"tile": 32, "stride": 16, "batch_size": 4}
    _stitched(tmp_path / "all", image, tissue, progress=done.append, **settings)
    assert sum(done) == plan(100, 80, tissue, **settings) == 6 * 4

    def stop(tiles):
        raise _Stopped

    with pytest.raises(_Stopped):
        _stitched(tmp_path / "stopped", image, tissue, progress=stop, **settings)


def test_tiles_across_a_border_of_strips_count_twice():
    tissue = _Mask(np.ones((16, 30), bool))
    settings = {"tile": 10, "stride": 10, "batch_size": 3}
    assert plan(30, 16, tissue, **settings, missing=layout(30, 16, strip=20)) == 6
    assert plan(30, 16, tissue, **settings, missing=layout(30, 16, strip=15)) == 8


def test_tiles_without_tissue_are_neither_read_nor_computed(tmp_path):
    image = _random_image(100, 100)
    tissue = _Mask(np.zeros((100, 100), bool))
    tissue.mask[70:75, 70:75] = True
    read = []

    def reading(x, y, width, height):
        read.append((x, y))
        return _reader(image)(x, y, width, height)

    parts = Parts(tmp_path, 100, 100, {})
    arguments = {"tile": 20, "stride": 20, "window": "flat", "num_classes": CLASSES}
    stitch(reading, tissue, _predict, parts, batch_size=3, **arguments)
    assert read == [(60, 60)]
    assert ((parts.read(0, 100) < CLASSES) == tissue.mask).all()


def test_a_slide_without_tissue_needs_no_network(tmp_path):
    image = _random_image(50, 40)
    nothing = _Mask(np.zeros((40, 50), bool))
    white = White(white_background, 50)
    parts = _stitched(tmp_path, image, nothing, predict=None, tile=16, stride=8, white=white)
    assert (parts.read(0, 40) == CLASSES).all()
    assert not parts.read_probability(0, 0, 40).any()


@pytest.mark.parametrize("min_area", [1, 2, 12, 50])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.95])
def test_white_is_what_the_rule_finds_on_the_whole_slide(tmp_path, monkeypatch, min_area, share):
    monkeypatch.setattr(stitching, "_WHITE_COLUMNS", 40)
    bright = np.random.default_rng(min_area).random((70, 170)) < share
    image = np.where(bright[..., None], 230, 90).astype(np.uint8).repeat(3, axis=-1)
    rule = partial(white_background, min_area=min_area)
    geometry = {"strip": 65, "rows": 25}
    tissue = _everything(image)
    tissue.mask[:, 100:] = False
    parts = _stitched(
        tmp_path, image, tissue, geometry=geometry, white=White(rule, min_area), tile=32, stride=32
    )
    found = parts.read(0, 70) == CLASSES
    np.testing.assert_array_equal(found, rule(image) | ~tissue.mask)
    assert not parts.read_probability(1, 0, 70)[found].any()


def test_ties_go_to_the_first_class(tmp_path):
    def equal(images):
        return np.full((*images.shape[:3], CLASSES), 1 / CLASSES, np.float32)

    image = _random_image(50, 40)
    parts = _stitched(tmp_path, image, _everything(image), predict=equal, tile=16, stride=5)
    assert (parts.read(0, 40) == 0).all()


@pytest.mark.parametrize("failing_call", [0, 40])
def test_an_error_while_reading_reaches_the_caller(tmp_path, failing_call):
    image = _random_image(200, 200)
    calls, threads = [], threading.active_count()

    def failing(x, y, width, height):
        calls.append(1)
        if len(calls) > failing_call:
            raise InputError("slide.svs: a tile is damaged")
        return _reader(image)(x, y, width, height)

    parts = Parts(tmp_path, 200, 200, {}, rows=64)
    arguments = {"tile": 32, "stride": 16, "window": "flat", "num_classes": CLASSES}
    with pytest.raises(InputError, match="a tile is damaged") as caught:
        stitch(failing, _everything(image), _predict, parts, batch_size=4, **arguments)
    assert threading.active_count() == threads, caught.value
    assert len(calls) < failing_call + 4 * 5


def test_an_error_while_writing_reaches_the_caller(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Parts, "write", full)
    image = _random_image(60, 60)
    with pytest.raises(OSError, match="No space left"):
        _stitched(tmp_path, image, _everything(image), tile=32, stride=16)


def test_probabilities_that_are_no_numbers_are_refused(tmp_path):
    def broken(images):
        found = _predict(images)
        found[-1, 3, 3, 1] = np.nan
        return found

    image = _random_image(60, 60)
    with pytest.raises(InputError, match="no finite probabilities around x="):
        _stitched(tmp_path, image, _everything(image), predict=broken, tile=32, stride=16)


def test_a_batch_is_waited_for_after_the_next_was_begun(tmp_path):
    events = []

    class OnItsWay(NamedTuple):
        number: int
        probabilities: np.ndarray

        def __array__(self, dtype=None, copy=None):
            events.append(f"wait {self.number}")
            return self.probabilities

    def predict(images):
        number = sum(event.startswith("begin") for event in events)
        events.append(f"begin {number}")
        return OnItsWay(number, _predict(images))

    image = _random_image(64, 48)
    _stitched(tmp_path, image, _everything(image), predict=predict, tile=16, stride=16)
    assert events == ["begin 0", "begin 1", "wait 0", "begin 2", "wait 1", "wait 2"]
