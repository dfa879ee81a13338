"""Places that deserve a look, on drawn maps."""

import numpy as np
import pytest

from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.outputs import places, windows
from wsss_jax.slides.outputs.windows import WindowSums

NAMES = ("tumor", "stroma", "lymph <b>", "fat")
ROLES = {"tumor": "tumor", "stroma": "stroma", "lymphocytes": "lymph <b>"}
NONE = len(NAMES)


def make_frame(labels, mpp=1.0, scale=(2.0, 2.0), origin=(0, 0)) -> MapFrame:
    height, width = labels.shape
    size = round(width * scale[0]), round(height * scale[1])
    return MapFrame(width, height, mpp, scale, size, origin)


def write_parts(folder, labels, layout=(8192, 1024), probabilities=()) -> Parts:
    height, width = labels.shape
    parts = Parts(folder, Layout(width, height, *layout), {}, channels=len(probabilities))
    for part in parts.missing:
        inside = np.s_[part.y0 : part.y1, part.x0 : part.x1]
        parts.write(part, labels[inside], np.array([each[inside] for each in probabilities]))
    return parts


@pytest.fixture
def labels() -> np.ndarray:
    """Two hot spots of each kind on glass; 600 x 800 pixels."""
    labels = np.full((600, 800), NONE, np.uint8)
    labels[100:200, 100:150], labels[100:200, 150:200] = 0, 1  # half and half, 100 wide
    labels[300:400, 600:680], labels[300:400, 680:700] = 0, 1
    labels[440:540, 100:200] = 2
    labels[440:500, 500:560] = 2
    return labels


def find_hot_spots(parts, frame, side, roles=ROLES, most=9):
    spots = places.HotSpots(side, frame, NAMES, roles)
    for part, read_map in parts.iterate():
        spots.add(part, read_map(0))
    return spots.find(most)


def test_windows_are_sums_over_squares(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (70, 101)).astype(np.uint8)
    sums = WindowSums(20.0, 101, 70, 1)
    for part, read_map in write_parts(tmp_path, labels, (33, 17)).iterate():
        sums.add(0, part, read_map(0) == 1)
    (of_windows,) = sums.sum_windows()
    assert of_windows.shape == (14 - 3, 21 - 3) and sums.window_pixels == 400
    for row in range(of_windows.shape[0]):
        for column in range(of_windows.shape[1]):
            window = sums.get_window(row, column)
            inside = labels[window.y0 : window.y1, window.x0 : window.x1] == 1
            assert of_windows[row, column] == inside.sum()
            assert inside.size == window.pixels == sums.count_pixels()[row, column]
            assert (window.x0, window.y0) == (5 * column, 5 * row)
    assert sums.get_window(10, 17) == (85, 50, 101, 70)


def test_chosen_windows_do_not_overlap():
    scores = np.random.default_rng(1).random((30, 40))
    scores[:, :3] = -np.inf
    chosen = windows.choose_apart(scores, 1000)
    assert len(chosen) > 10
    taken = np.zeros((33, 43), int)
    for row, column in chosen:
        taken[row : row + windows.CELLS, column : column + windows.CELLS] += 1
    assert taken.max() == 1
    values = [scores[at] for at in chosen]
    assert values == sorted(values, reverse=True) and values[0] == scores.max()
    assert windows.choose_apart(np.zeros((2, 2)), 3) == [(0, 0)]
    assert windows.choose_apart(np.full((2, 2), -np.inf), 3) == []


def test_hot_spots_are_where_they_were_drawn(labels, tmp_path):
    frame = make_frame(labels, mpp=2.0)
    found = find_hot_spots(write_parts(tmp_path, labels), frame, side=200.0)
    assert {place.kind for place in found} == {places.MIX, places.LYMPHOCYTES}
    mixes = [place for place in found if place.kind == places.MIX]
    assert mixes[0].box == [200, 200, 200, 200] and mixes[0].value == 1.0
    assert mixes[0].text == "tumor 0.0200 mm², stroma 0.0200 mm²"
    assert mixes[0].center == [300, 300]
    assert mixes[1].box == [1200, 600, 200, 200]
    assert mixes[1].value == pytest.approx(4 * 0.8 * 0.2)
    lymphocytes = [place for place in found if place.kind == places.LYMPHOCYTES]
    assert lymphocytes[0].box[0] == 200 and abs(lymphocytes[0].box[1] - 880) <= 50
    assert lymphocytes[0].value == pytest.approx(0.9)  # rows 425 or 450 on: windows move by 25
    assert lymphocytes[1].value == pytest.approx(0.36)
    without = find_hot_spots(write_parts(tmp_path, labels), frame, 200.0, {"tumor": "tumor"})
    assert without == []
    assert len(find_hot_spots(write_parts(tmp_path, labels), frame, 200.0, most=1)) == 2


def test_places_do_not_depend_on_the_parts(tmp_path):
    rng = np.random.default_rng(2)
    labels = np.kron(rng.integers(0, NONE + 1, (30, 40)), np.ones((20, 20))).astype(np.uint8)
    frame = make_frame(labels)
    highest = rng.integers(60, 256, labels.shape).astype(np.uint8) * (labels < NONE)
    results = []
    for index, layout in enumerate(((8192, 1024), (77, 130), (500, 31))):
        parts = write_parts(tmp_path / str(index), labels, layout)
        uncertain = places.UncertainPlaces(100.0, frame)
        for part, read_map in parts.iterate():
            inside = np.s_[part.y0 : part.y1, part.x0 : part.x1]
            uncertain.add(part, read_map(0) < NONE, highest[inside])
        results.append(
            [
                places.find_largest_regions(parts.read, frame, NAMES),
                find_hot_spots(parts, frame, 150.0),
                uncertain.find(5),
            ]
        )
    assert results[0] == results[1] == results[2]
    assert [len(found) for found in results[0]] == [4, 18, 5]


def test_least_certain_places_have_the_lowest_mean(tmp_path):
    labels = np.full((300, 400), NONE, np.uint8)
    labels[:200] = 0
    highest = np.where(labels == 0, 250, 0).astype(np.uint8)
    highest[100:150, 200:300] = 102  # 0.4, half of a window of 100
    highest[0:30, 0:30] = 60  # less of one
    frame = make_frame(labels)
    uncertain = places.UncertainPlaces(100.0, frame)
    for part, read_map in write_parts(tmp_path, labels, (170, 90)).iterate():
        inside = np.s_[part.y0 : part.y1, part.x0 : part.x1]
        uncertain.add(part, read_map(0) < NONE, highest[inside])
    first, second = uncertain.find(2)
    # The lower half of the window may be glass: of what has a class, all is uncertain.
    assert first.value == pytest.approx((50 * 102 + 50 * 250) / 100 / 255)
    assert first.box[0] == 400 and 100 <= first.box[1] <= 300
    assert first.text == "Mean probability 0.69"
    assert second.box == [0, 0, 200, 200]
    assert second.value == pytest.approx((900 * 60 + 9100 * 250) / 10_000 / 255)


def test_windows_with_little_tissue_are_not_least_certain(tmp_path):
    labels = np.full((100, 200), NONE, np.uint8)
    labels[:, :60], labels[:45, 100:] = 0, 1
    highest = np.where(labels < NONE, 200, 0).astype(np.uint8)
    highest[:, 100:] //= 2
    uncertain = places.UncertainPlaces(100.0, make_frame(labels))
    for part, read_map in write_parts(tmp_path, labels).iterate():
        uncertain.add(part, read_map(0) < NONE, highest)
    (place,) = uncertain.find(3)
    assert place.box == [0, 0, 200, 200]


def test_the_largest_region_of_each_class_with_a_point_inside(tmp_path):
    labels = np.full((900, 1300), NONE, np.uint8)
    y, x = np.mgrid[:900, :1300]
    radius = np.hypot(y - 400, x - 600)
    labels[(radius > 250) & (radius < 390)] = 0  # a ring: the middle of its box is not in it
    labels[380:420, 590:610] = 0
    labels[10:20, 10:20] = labels[10:20, 40:50] = 2  # the same size
    frame = make_frame(labels, mpp=0.5, scale=(2.0, 1.0))
    parts = write_parts(tmp_path, labels)
    ring, lymphocytes = places.find_largest_regions(parts.read, frame, NAMES)
    pixels = int(((radius > 250) & (radius < 390)).sum())
    assert ring.value == pytest.approx(pixels * 0.25e-6) and ring.text.startswith("tumor 0.0")
    assert ring.box == [422, 11, 1558, 779]
    column, row = ring.center[0] / 2, ring.center[1]
    assert 280 < np.hypot(row - 400, column - 600) < 360
    assert lymphocytes.box == [20, 10, 20, 10]  # of equal ones the left one
    assert lymphocytes.text == "lymph <b> 25 µm²"
    assert all(abs(at - middle) <= 2 for at, middle in zip(lymphocytes.center, (30, 15)))


def test_a_map_smaller_than_a_window(tmp_path):
    labels = np.zeros((3, 5), np.uint8)
    labels[1] = 1
    frame = make_frame(labels)
    assert WindowSums(1000.0, 5, 3, 1).count_pixels().tolist() == [[15]]
    (mix,) = find_hot_spots(write_parts(tmp_path, labels), frame, 1000.0)
    assert mix.box == [0, 0, 10, 6]
    assert mix.value == pytest.approx(4 * 10 * 5 / 1000**4)
    thin = np.zeros((2000, 1), np.uint8)
    parts = write_parts(tmp_path / "thin", thin)
    (region,) = places.find_largest_regions(parts.read, make_frame(thin), NAMES)
    assert region.box == [0, 0, 2, 4000]


def test_links_count_from_the_scanned_area():
    place = {"box": [1100, 500, 400, 200]}
    assert places.make_link(place, (100, 100), (0.25, 0.5)) == (
        "view.html#x=300.0&y=250.0&width=100.0"
    )
