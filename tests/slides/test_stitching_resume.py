"""Stitching that was stopped, or whose parts were damaged, resumes to the same bytes."""

from functools import partial

import numpy as np
import pytest

from tests.slides.tiny_stitching import CLASSES, draw_noise, mark_everything, predict, stitch_image
from wsss_jax.slides.mapping.parts import Layout, Part, Parts
from wsss_jax.slides.mapping.plan import Plan
from wsss_jax.slides.mapping.tiling import Tiling


class _StoppedError(Exception):
    pass


def _read_folder(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _predict_by_batch(images):
    """A network whose rounding depends on which images share a batch, and on their order."""
    checksum = images.astype(np.int64).sum(axis=(1, 2, 3)) @ np.arange(1, len(images) + 1)
    return predict(images) * np.float32(1 + checksum % 97 * 1e-3)


def _draw_positions(width, height):
    """Draws an image whose red and green are the position of a pixel."""
    image = draw_noise(width, height)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def _find_positions(images):
    """Finds (x, y) of the tiles of a batch from `_draw_positions`, without the filling."""
    return [(int(image[0, 0, 0]), int(image[0, 0, 1])) for image in images if image[0, 0, 0] < 255]


def _record_batches(calls=None):
    """Returns a network that stops after a number of calls, and a list of its batches' tiles."""
    batches = []

    def record(images):
        if len(batches) == calls:
            raise _StoppedError
        batches.append(_find_positions(images))
        return _predict_by_batch(images)

    return record, batches


def _reaches(batch, parts, tile):
    return any(
        x < part.x1 and x + tile > part.x0 and y < part.y1 and y + tile > part.y0
        for x, y in batch
        for part in parts
    )


@pytest.mark.parametrize("rows", [30, 10])
def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, rows):
    image = _draw_positions(130, 100)
    tissue = mark_everything(image)
    tissue.mask[40:80, 30:80] = False
    tiling, layout = Tiling(24, 7, batch_size=8), Layout(130, 100, strip=60, rows=rows)
    run = partial(
        stitch_image, image=image, tissue=tissue, tiling=tiling, strip=layout.strip, rows=rows
    )
    network, batches = _record_batches()
    run(tmp_path / "whole", predict=network)
    expected = _read_folder(tmp_path / "whole")
    assert sum(map(len, batches)) == Plan.of(tissue, tiling).count(layout.parts)

    missing_parts = set()
    for stop in range(0, len(batches), 5):
        folder = tmp_path / str(stop)
        with pytest.raises(_StoppedError):
            run(folder, predict=_record_batches(stop)[0])
        missing = Parts(folder, layout, {}, channels=CLASSES).missing
        network, again = _record_batches()
        run(folder, predict=network)
        assert _read_folder(folder) == expected
        assert all(batch in batches and _reaches(batch, missing, tiling.tile) for batch in again)
        assert sum(map(len, again)) == Plan.of(tissue, tiling).count(missing)
        missing_parts.add(len(missing))
    assert len(missing_parts) > 4  # it was stopped at different places


def test_only_damaged_parts_are_computed_again(tmp_path):
    image, layout = _draw_positions(90, 120), Layout(90, 120, strip=50, rows=20)
    tiling = Tiling(16, 8, batch_size=5)
    run = partial(stitch_image, tmp_path, image, mark_everything(image), tiling, strip=50, rows=20)
    network, batches = _record_batches()
    run(predict=network)
    expected = _read_folder(tmp_path)
    for name in ("part_x0000000_y0000040.bin", "part_x0000050_y0000100.bin"):
        (tmp_path / name).write_bytes(expected[name][:-1])
    missing = Parts(tmp_path, layout, {}, channels=CLASSES).missing
    assert missing == [Part(0, 40, 50, 60), Part(50, 100, 90, 120)]
    network, again = _record_batches()
    run(predict=network)
    assert _read_folder(tmp_path) == expected
    assert len(again) < len(batches) / 2
