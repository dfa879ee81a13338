"""Which tiles the networks see: those with enough tissue, and windows of the gate."""

from functools import partial

import numpy as np
import pytest

from tests.slides.tiny_stitching import (
    CLASSES,
    Mask,
    draw_noise,
    make_reader,
    mark_everything,
    predict,
    stitch_image,
)
from wsss_jax.masks import WhiteRule, find_white_background
from wsss_jax.slides.mapping import white_tiles
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.stitching import MapInputs, SharedGate
from wsss_jax.slides.mapping.tiling import Tiling, place_tiles


class _StoppedError(Exception):
    pass


class _Networks:
    """Networks whose rounding depends on the batch; they record what they see, and may stop."""

    def __init__(self, stop_after=None):
        self.windows, self.tiles, self._stop_after = [], [], stop_after

    def _record(self, batches, images):
        if len(self.windows) + len(self.tiles) == self._stop_after:
            raise _StoppedError
        batches.append(images)
        return images.astype(np.int64).sum(axis=(1, 2, 3)) @ np.arange(1, len(images) + 1)

    def classify(self, images):
        checksum = self._record(self.windows, images)
        mean = images[..., :1].mean(axis=(1, 2))
        return (np.repeat(mean, CLASSES, axis=1) + checksum % 97 / 97).astype(np.float32)

    def segment(self, images, presence):
        checksum = self._record(self.tiles, images)
        factor = np.float32(1 + checksum % 97 * 1e-3) * (1 + presence / 300)
        return predict(images) * factor[:, None, None]

    @property
    def gate(self):
        return SharedGate(self.classify, self.segment)


def _read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _interpolate_by_hand(at, starts):
    """Weights of the starts around a place: start -> weight."""
    if at in starts:
        return {at: 1.0}
    before, after = max(s for s in starts if s < at), min(s for s in starts if s > at)
    share = (at - before) / (after - before)
    return {before: 1 - share, after: share}


def test_a_tile_interpolates_the_log_odds_of_the_windows_around_it(tmp_path):
    image = draw_noise(130, 100)
    tissue = mark_everything(image)
    tissue.mask[:60, 60:] = False
    tiling = Tiling(24, 7, batch_size=8, gate_stride=18)
    seen = {}

    def classify(images):
        return images.reshape(len(images), -1)[:, :CLASSES].astype(np.float32) / 255

    def segment(images, presence):
        for tile, each in zip(images, presence):
            seen[tile.tobytes()] = each
        return predict(images)

    gate = SharedGate(classify, segment)
    stitch_image(tmp_path, image, tissue, tiling, predict=None, gate=gate)
    read, plan = make_reader(image), Plan.of(tissue, tiling)
    columns, rows = place_tiles(130, 24, 18).tolist(), place_tiles(100, 24, 18).tolist()
    for x, y in plan.tiles.tolist():
        odds = np.zeros(CLASSES)
        for j, down in _interpolate_by_hand(y, rows).items():
            for i, across in _interpolate_by_hand(x, columns).items():
                (found,) = classify(read(i, j, 24, 24)[None]).astype(float).clip(1e-6, 1 - 1e-6)
                odds += down * across * np.log(found / (1 - found))
        found = seen[read(x, y, 24, 24).tobytes()]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-odds)), atol=2e-6)
    assert plan.count_windows() < len(plan.tiles) / 4


@pytest.mark.parametrize("rows", [30, 10])
def test_a_stopped_map_with_windows_resumes_to_the_same_bytes(tmp_path, rows):
    image = draw_noise(130, 100)
    tissue = mark_everything(image)
    tissue.mask[40:80, 30:80] = False
    tiling = Tiling(24, 7, batch_size=8, gate_stride=15)
    run = partial(stitch_image, image=image, tissue=tissue, tiling=tiling, strip=60, rows=rows)
    whole = _Networks()
    run(tmp_path / "whole", gate=whole.gate)
    expected = _read_folder(tmp_path / "whole")
    batches = len(whole.windows) + len(whole.tiles)
    plan = Plan.of(tissue, tiling)
    count = sum(len(windows.places) for *_, windows in plan.divide(Layout(130, 100, 60).parts))
    assert count <= 8 * len(whole.windows) < count + 8 * 3  # each window once in a strip

    missing = set()
    for stop in range(0, batches, 5):
        folder = tmp_path / str(stop)
        with pytest.raises(_StoppedError):
            run(folder, gate=_Networks(stop).gate)
        missing.add(len(Parts(folder, Layout(130, 100, 60, rows), {}, CLASSES).missing))
        again = _Networks()
        run(folder, gate=again.gate)
        assert _read_folder(folder) == expected
        assert {b.tobytes() for b in again.windows} <= {b.tobytes() for b in whole.windows}
    assert len(missing) > 4  # it was stopped at different places


def test_tiles_with_less_tissue_are_left_out(tmp_path):
    image = draw_noise(64, 32)
    tissue = Mask(np.zeros((32, 64), bool))
    tissue.mask[:16, :16] = True  # a quarter of the first tile
    tissue.mask[:, 32:48] = True  # half of the second
    for share, tiles in ((0.0, 2), (0.25, 2), (0.26, 1), (0.5, 1), (0.51, 0), (1.0, 0)):
        tiling = Tiling(32, 32, batch_size=3, min_tissue_share=share)
        assert len(Plan.of(tissue, tiling).tiles) == tiles
        parts = stitch_image(tmp_path / str(share), image, tissue, tiling)
        has_class = parts.read(0, 32) < CLASSES
        assert has_class[:, :32].any() == (tiles == 2) and has_class[:, 32:].any() == (tiles >= 1)


@pytest.mark.parametrize("seed", range(3))
def test_white_tiles_change_no_label_when_left_out(tmp_path, seed):
    """A tile is left out exactly if the rule on the whole slide leaves it no pixel."""
    image = draw_noise(150, 120, seed) // 2
    image[:70, 40:110] = 230
    image[20:22, 60:62] = 90  # dark in the middle of white
    image[90:95, :9] = 230
    tissue, rule = mark_everything(image), WhiteRule(min_area=50)
    tissue.mask[100:] = False
    tiling = Tiling(24, 10, batch_size=5)
    inputs = MapInputs(make_reader(image), tissue, predict, CLASSES, rule)
    plan = Plan.of(tissue, tiling)
    left_out = white_tiles.find(inputs, plan, image, 1.0)
    excluded = find_white_background(image, rule) | ~tissue.mask
    expected = [excluded[y : y + 24, x : x + 24].all() for x, y in plan.tiles.tolist()]
    assert left_out.tolist() == expected and 3 < left_out.sum() < len(left_out)

    whole = stitch_image(tmp_path / "whole", image, tissue, tiling, white=rule)
    fewer = stitch_image(tmp_path / "fewer", image, tissue, tiling, white=rule, left_out=left_out)
    np.testing.assert_array_equal(fewer.read(0, 120), whole.read(0, 120))
    for channel in range(CLASSES):
        read = [parts.read_probability(channel, 0, 120) for parts in (fewer, whole)]
        np.testing.assert_array_equal(*read)
