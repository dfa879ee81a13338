"""The measures, on drawn patches with known answers and on real tissue."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import base_slides
from data.patch_files import read_image
from data.synthetic_slides import draw_section
from wsss_jax.sampling import quality
from wsss_jax.sampling.selection import select_patches

REAL = Path(__file__).parents[3] / "shared" / "data"
GLASS, EOSIN, HEMATOXYLIN = (244, 244, 244), (222, 160, 198), (96, 60, 132)


def paint(color: tuple[int, int, int], share: float = 1.0) -> np.ndarray:
    """A patch whose upper `share` has a color, on glass."""
    patch = np.full((224, 224, 3), GLASS, np.uint8)
    patch[: round(224 * share)] = color
    return patch


def draw_tissue(number: int = 0) -> np.ndarray:
    """Grained tissue, another one for each number."""
    return draw_section(25600, 25600).draw_tile(12800 + 256 * number, 12800)[:224, :224]


def of(measure, *patches):
    return measure(np.stack(patches)).tolist()


def test_white_counts_glass():
    measured = of(quality.measure_white, paint(EOSIN), paint(EOSIN, 0.25), paint(GLASS))
    assert measured == [0, 0.75, 1]


@pytest.mark.parametrize("color", [EOSIN, HEMATOXYLIN, (240, 215, 230), (150, 60, 120)])
def test_stains_are_tissue_and_no_ink(color):
    assert of(quality.measure_tissue, paint(color)) == [1]
    assert of(quality.measure_pen, paint(color)) == [0]


@pytest.mark.parametrize(
    "color",
    [
        (45, 160, 140),  # green
        (40, 70, 180),  # blue
        (215, 30, 50),  # red
        (20, 20, 20),  # black
        (120, 120, 120),  # gray dust
    ],
)
def test_ink_is_no_tissue(color):
    half = paint(color, 0.5)
    assert of(quality.measure_pen, half)[0] == pytest.approx(0.5, abs=0.02)
    assert of(quality.measure_tissue, half)[0] < 0.02


@pytest.mark.parametrize("gray", [255, 244, 215, 200])
def test_glass_is_neither_tissue_nor_ink(gray):
    assert of(quality.measure_tissue, paint((gray,) * 3)) == [0]
    assert of(quality.measure_pen, paint((gray,) * 3)) == [0]


def test_dark_areas_count_and_single_nuclei_do_not():
    nuclei = paint(EOSIN)
    nuclei[::20, ::20] = (30, 20, 50)
    measured = of(quality.measure_dark, paint((60, 30, 50), 0.5), nuclei)
    assert measured == [pytest.approx(0.5, abs=0.02), 0]


def test_sharpness_does_not_depend_on_contrast():
    """Unlike the variance of the Laplacian, which is a ninth."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 0.7)
    faint = (noise // 3 + 150).astype(np.uint8)
    sharp, pale = of(quality.measure_sharpness, noise, faint)
    assert pale == pytest.approx(sharp, abs=0.1)


@pytest.mark.parametrize("angle", [0, 45, 90])
def test_blur_of_either_kind_lowers_sharpness(angle):
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.5)
    streak = np.zeros((9, 9), np.float32)
    streak[4] = 1 / 9
    turned = cv2.warpAffine(streak, cv2.getRotationMatrix2D((4, 4), angle, 1), (9, 9))
    moved = cv2.filter2D(noise, -1, turned / turned.sum())
    sharp, gaussian, motion = of(quality.measure_sharpness, noise, blurred, moved)
    assert gaussian < sharp - 0.8 and motion < sharp - 0.3


def test_stain_is_of_the_palest_quarter_of_tissue():
    """More nuclei make a patch darker, but not over-stained."""
    sparse, dense = paint(EOSIN), paint(EOSIN)
    sparse[:20], dense[:150] = HEMATOXYLIN, HEMATOXYLIN
    twice = np.round(245 * (sparse / 245) ** 2).astype(np.uint8)
    one, other, over = of(quality.measure_stain, sparse, dense, twice)
    assert one == other == pytest.approx(np.mean(-np.log10(np.array(EOSIN) / 245)), rel=1e-5)
    assert over == pytest.approx(2 * one, rel=0.02)
    assert np.isnan(of(quality.measure_stain, paint(GLASS)))


def test_nearest_is_the_difference_from_an_earlier_patch():
    patches = np.stack([draw_tissue(0), draw_tissue(1), draw_tissue(0), paint(GLASS)])
    patches[2] = np.clip(patches[2].astype(int) + 1, 0, 255)
    thumbnails = quality.make_thumbnails(patches)
    nearest = quality.measure_nearest(thumbnails)
    assert nearest[0] == quality.FARTHEST and nearest[1] > 2 and nearest[3] > 20
    assert nearest[2] == pytest.approx(1, abs=0.2)


def test_nearest_agrees_with_the_definition(monkeypatch):
    monkeypatch.setattr(quality, "_BLOCK", 7)
    thumbnails = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), np.uint8)
    expected = [quality.FARTHEST]
    for index in range(1, 40):
        differences = thumbnails[:index].astype(float) - thumbnails[index]
        expected.append(np.sqrt((differences**2).mean(axis=(1, 2, 3))).min())
    np.testing.assert_allclose(quality.measure_nearest(thumbnails), expected, rtol=1e-4)


def test_fine_patches_are_measured_at_one_micrometer():
    patch = draw_tissue()[None]
    fine = np.repeat(np.repeat(patch, 4, axis=1), 4, axis=2)
    coarse = quality.measure_patches(patch, 1.0)
    for column, values in quality.measure_patches(fine, 0.25).items():
        np.testing.assert_array_equal(values, coarse[column])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared data")
def test_real_regions_are_stained_and_without_ink():
    paths = sorted((REAL / "lung_rois" / "images").glob("*.png"))
    assert len(paths) == 67
    for path in paths:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)[None]
        assert quality.measure_pen(image)[0] < 0.03, path.name
        assert quality.measure_tissue(image)[0] > 0.2, path.name
        assert quality.measure_sharpness(image)[0] > 1, path.name


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared data")
def test_real_tiles_are_judged_as_they_are_named():
    thresholds = base_slides.sample("s", "o").quality.to_dict()
    for path in sorted((REAL / "tiles").glob("*.png")):
        if "kidney" in path.name or path.name.startswith("liver"):
            continue  # another stain; tiles of 50 pixels
        measures = quality.measure_patches(read_image(path, None)[None], 1.0)
        measures["nearest"] = np.array([quality.FARTHEST])
        (reasons,) = select_patches(measures, thresholds).reasons
        if "pen" in path.name:
            assert "pen" in reasons, path.name
        elif path.name.startswith(("no-tissue", "almost-white")):
            assert "no tissue" in reasons and "white" in reasons, path.name
        else:
            assert not reasons, path.name
