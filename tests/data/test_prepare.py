"""data/prepare.py: regions drawn here are cut, read back and compared."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from data import folders, patch_checks, patch_files, prepare
from data.dataset import derive_label, load_dataset
from data.prepare import BCSS_CODES, BCSS_EXCLUDED, Cutting, MaskCodes, cut_patches
from data.splits import SPLITS, Region, split_regions
from wsss_jax.errors import InputError

BCSS = load_dataset("bcss_wsss", "")
LUNG = Path(__file__).parents[3] / "shared" / "data" / "lung_rois"


def region(root, stem, codes, seed=0):
    """Writes one region with the given mask codes; returns its pixels."""
    for name in ("images", "masks"):
        (root / name).mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*codes.shape, 3), np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{stem}.png")
    Image.fromarray(codes.astype(np.uint8)).save(root / "masks" / f"{stem}.png")
    return pixels


def cut(root, out="out", **changes):
    """Cuts the regions of `root` into patches of 16 pixels, all for training, with changes."""
    codes = changes.pop("codes", BCSS_CODES), changes.pop("excluded", BCSS_EXCLUDED)
    workers = changes.pop("workers", 1)
    fields = {"patch": 16, "stride": 8, "resize": 16, "shares": (1.0, 0.0, 0.0), "seed": 0}
    return cut_patches(
        root / "images",
        root / "masks",
        root / out,
        MaskCodes(BCSS, *codes),
        Cutting(**(fields | changes)),
        workers=workers,
    )


def test_bcss_grouping_has_every_code_once():
    codes = [code for group in BCSS_CODES.values() for code in group] + list(BCSS_EXCLUDED)
    assert sorted(codes) == list(range(22))
    assert set(BCSS_CODES) == set(BCSS.classes)


def test_labeled_patches_cover_the_region_and_carry_its_classes(tmp_path):
    codes = np.full((37, 40), 2)
    codes[:, 20:] = 19
    codes[:4, :4] = 4  # 6 % of the first patch
    codes[36, :] = 0
    pixels = region(tmp_path, "r", codes)
    summary = cut(tmp_path)
    dataset = load_dataset("", tmp_path / "out")
    assert dataset.present_share == 0.05 and dataset.classes == BCSS.classes
    patches = folders.list_labeled_patches(tmp_path / "out", "train", dataset)
    patch_checks.check_patches(patches, 16, dataset)
    tops, lefts = [0, 8, 16, 21], [0, 8, 16, 24]
    assert summary["patches"] == {"train": len(patches), "val": 0, "test": 0}
    assert len(patches) == 16 and sum(summary["labels"]["train"].values()) == 16
    expected = np.full(22, 4)
    expected[[1, 19, 20, 2, 3, 10, 11, 4]] = [0, 0, 0, 1, 2, 2, 2, 3]
    masks = folders.list_annotated_patches(tmp_path / "out", "train", dataset)
    seen = set()
    for patch, annotated in zip(patches, masks):
        left, top = (int(n) for n in re.search(r"_x(\d+)_y(\d+)", patch.stem).groups())
        window = np.s_[top : top + 16, left : left + 16]
        seen.add((top, left))
        np.testing.assert_array_equal(patch_files.read_image(patch.image, 16), pixels[window])
        mask = patch_files.read_mask(annotated.mask, dataset, 16)
        np.testing.assert_array_equal(mask, expected[codes[window]])
        assert patch.label == tuple(derive_label(mask, dataset))
    assert seen == {(top, left) for top in tops for left in lefts}
    assert patches[0].label == (0, 1, 0, 1)


def test_validation_and_test_do_not_overlap(tmp_path):
    for stem in "abc":
        region(tmp_path, stem, np.full((40, 32), 1))
    summary = cut(tmp_path, shares=(0.4, 0.3, 0.3))
    assert summary["regions"] == {"train": 1, "val": 1, "test": 1}
    dataset = load_dataset("", tmp_path / "out")
    for split in ("val", "test"):
        patches = folders.list_annotated_patches(tmp_path / "out", split, dataset)
        patch_checks.check_patches(patches, 16, dataset)
        places = [patch.stem.split("_", 1)[1] for patch in patches]
        assert places == [f"x{x:05d}_y{y:05d}" for x in (0, 16) for y in (0, 16, 24)]
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    for name in ("train", "val", "test"):
        (stem,) = (stem for stem, where in split.items() if where == name)
        for path in (tmp_path / "out" / name / "img").iterdir():
            assert path.name.startswith(f"{stem}_")


def test_small_regions_are_padded_with_white_excluded(tmp_path):
    pixels = region(tmp_path, "r", np.full((10, 12), 3))
    cut(tmp_path)
    dataset = load_dataset("", tmp_path / "out")
    (patch,) = folders.list_annotated_patches(tmp_path / "out", "train", dataset)
    image = patch_files.read_image(patch.image, 16)
    np.testing.assert_array_equal(image[:10, :12], pixels)
    assert (image[10:] == 255).all() and (image[:, 12:] == 255).all()
    mask = patch_files.read_mask(patch.mask, dataset, 16)
    assert (mask[:10, :12] == 2).all() and (mask == dataset.excluded).sum() == 256 - 120


@pytest.mark.parametrize("resize", [8, 32])
def test_resize(tmp_path, resize):
    codes = np.full((16, 16), 1)
    codes[:, 8:] = 4
    pixels = region(tmp_path, "r", codes)
    cut(tmp_path, resize=resize)
    dataset = load_dataset("", tmp_path / "out")
    (patch,) = folders.list_annotated_patches(tmp_path / "out", "train", dataset)
    mask = patch_files.read_mask(patch.mask, dataset, resize)
    assert (mask[:, : resize // 2] == 0).all() and (mask[:, resize // 2 :] == 3).all()
    image = patch_files.read_image(patch.image, resize).astype(float)
    if resize == 8:
        means = pixels.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
        assert np.abs(image - means).max() <= 0.75
    assert np.abs(image.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 3


def test_patches_without_a_class_are_left_out_and_counted(tmp_path):
    codes = np.zeros((16, 48))
    codes[:, 32:] = 1
    region(tmp_path, "r", codes)
    summary = cut(tmp_path, stride=16)
    assert summary["patches"]["train"] == 1 and summary["left_out"]["train"] == 2
    assert summary["labels"]["train"] == {"TUM": 1}


def test_split_depends_on_neither_order_nor_patches(tmp_path):
    rng = np.random.default_rng(0)
    regions = [
        Region(str(n), Path(), Path(), (*rng.integers(1, 10**6, 4).tolist(), 1000))
        for n in range(60)
    ]
    shares = (0.7, 0.15, 0.15)
    split = split_regions(regions, shares, seed=1)
    assert split == split_regions(regions[::-1], shares, seed=1)
    assert split != split_regions(regions, shares, seed=2)
    pixels = {
        name: sum(np.array(r.pixels) for r in regions if split[r.stem] == name) for name in SPLITS
    }
    for name, share in zip(SPLITS, shares):
        np.testing.assert_allclose(pixels[name] / sum(pixels.values()), share, atol=0.06)


def test_small_sets_fill_all_splits_and_share_the_rare_class():
    rare = [Region(f"r{n}", Path(), Path(), (10, 10, 80, 0)) for n in range(3)]
    others = [Region(f"o{n}", Path(), Path(), (50, 50, 0, 0)) for n in range(20)]
    for seed in range(5):
        split = split_regions(rare + others, (0.8, 0.1, 0.1), seed)
        assert {split[region.stem] for region in rare} == {"train", "val", "test"}
        assert set(split_regions(others[:3], (0.8, 0.1, 0.1), seed).values()) == set(split.values())
    assert set(split_regions(others, (0.9, 0.1, 0.0), 0).values()) == {"train", "val"}
    with pytest.raises(InputError, match="2 usable regions cannot fill 3 splits"):
        split_regions(others[:2], (0.8, 0.1, 0.1), 0)


def test_a_bad_region_costs_only_itself(tmp_path):
    for stem in ("good", "truncated", "shape", "maskless", "double"):
        region(tmp_path, stem, np.full((16, 16), 1))
    path = tmp_path / "images" / "truncated.png"
    path.write_bytes(path.read_bytes()[:200])
    Image.new("L", (15, 16), 1).save(tmp_path / "masks" / "shape.png")
    (tmp_path / "masks" / "maskless.png").unlink()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "double.jpg")
    Image.new("L", (16, 16), 1).save(tmp_path / "masks" / "imageless.png")
    summary = cut(tmp_path, workers=2)
    assert summary["patches"]["train"] == 1
    bad = summary["bad_regions"]
    assert list(bad) == ["double", "imageless", "maskless", "shape", "truncated"]
    for stem, part in (
        ("double", "same stem"),
        ("imageless", "no image with this stem"),
        ("maskless", "no such mask"),
        ("shape", "15x16 pixels but its image 16x16"),
        ("truncated", "damaged, or not a"),
    ):
        assert part in bad[stem]
    assert list(json.loads((tmp_path / "out" / "split.json").read_text())) == ["good"]

    (tmp_path / "images" / "good.png").write_bytes(b"")
    with pytest.raises(InputError, match="no usable region among 6: "):
        cut(tmp_path, out="other")
    assert not (tmp_path / "other").exists()


def test_a_value_in_no_group(tmp_path):
    region(tmp_path, "r", np.full((16, 16), 22))
    with pytest.raises(InputError, match=r"masks/r\.png: mask value 22 is in no group; add it"):
        cut(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": {"TUM": (1,)}}, "codes name the classes TUM but BCSS-WSSS has TUM, STR"),
        ({"excluded": (0, 1)}, "codes of excluded: 1 also belongs to TUM"),
        ({"excluded": (256,)}, "codes of excluded: 256 is not a mask value"),
        ({"stride": 17}, "stride 17 is above patch 16"),
        ({"resize": 0}, "resize is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"patch": 10**12}, "patch is 1000000000000; give at most 16384"),
        ({"resize": 10**6}, "resize is 1000000; give at most 16384"),
        ({"shares": (0.5, 0.5, 0.5)}, "adding up to 1"),
        ({"shares": (1.5, -0.5, 0.0)}, "adding up to 1"),
        ({"min_share": 1.0}, "min_share is 1.0"),
    ],
)
def test_impossible_arguments(tmp_path, changes, message):
    region(tmp_path, "r", np.full((16, 16), 1))
    with pytest.raises(InputError, match=re.escape(message)):
        cut(tmp_path, **changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


def test_out_is_never_overwritten_nor_half_written(tmp_path, monkeypatch):
    region(tmp_path, "r", np.full((16, 16), 0))
    with pytest.raises(InputError, match="no patch has a class"):
        cut(tmp_path)
    region(tmp_path, "r", np.full((16, 16), 1))
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_mask", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cut(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks", "out"]
    cut(tmp_path)
    with pytest.raises(InputError, match="out: exists and is not an empty folder"):
        cut(tmp_path)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".DS_Store").write_bytes(b"")
    cut(tmp_path, out="hidden")
    assert (tmp_path / "hidden" / ".DS_Store").is_file() and (tmp_path / "hidden/train").is_dir()
    with pytest.raises(InputError, match="no such folder of region images"):
        cut(tmp_path / "nowhere")


def test_suffixes_of_masks_in_upper_case(tmp_path):
    for stem in ("a", "b"):
        region(tmp_path, stem, np.full((16, 16), 1))
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "a.PNG")
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "a.PNG")
    (tmp_path / "masks" / "._a.png").write_bytes(b"macOS")
    (tmp_path / "masks" / "b.jpg").write_bytes(b"a picture of the mask")
    summary = cut(tmp_path)
    assert summary["patches"]["train"] == 2 and not summary["bad_regions"]


def test_regions_as_viewers_show_them(tmp_path):
    """The first is stored turned, the second is transparent; masks are as viewers show them."""
    codes = np.full((32, 16), 1)
    codes[:, 8:] = 4
    for stem in ("turned", "transparent"):
        region(tmp_path, stem, codes)
    shown = np.full((32, 16, 3), 60, np.uint8)
    shown[:, 8:] = 200
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "images" / "turned.png").unlink()
    Image.fromarray(np.rot90(shown)).save(tmp_path / "images" / "turned.jpg", exif=exif, quality=98)
    alpha = np.full((32, 16), 255, np.uint8)
    alpha[:, 8:] = 0
    Image.fromarray(np.dstack([shown, alpha])).save(tmp_path / "images" / "transparent.png")
    summary = cut(tmp_path)
    assert summary["patches"]["train"] == 6 and not summary["bad_regions"]
    for path in (tmp_path / "out" / "train" / "img").iterdir():
        image = patch_files.read_image(path, 16).astype(int)
        right = 200 if path.name.startswith("turned") else 255
        assert np.abs(image[:, :8] - 60).max() < 9 and np.abs(image[:, 8:] - right).max() < 9


def test_unsuitable_regions_cost_only_themselves(tmp_path):
    stems = ["cmyk", "deep", "good", "lab", "other", "pages", "pipe", "type", "wide", "x", "X"]
    names = [*stems, "line\nbreak", 240 * "n"]
    for stem in names:
        region(tmp_path, stem, np.full((16, 16), 1))
    images, masks = tmp_path / "images", tmp_path / "masks"
    for stem in ("cmyk", "deep", "lab", "other", "pages", "pipe"):
        (images / f"{stem}.png").unlink()
    Image.new("CMYK", (16, 16)).save(images / "cmyk.jpg")
    Image.new("LAB", (16, 16)).save(images / "lab.tif")
    tifffile.imwrite(images / "deep.tif", np.zeros((16, 16, 3), np.uint16), photometric="rgb")
    Image.new("RGB", (16, 16)).save(images / "other.bmp")
    page = Image.new("RGB", (16, 16))
    page.save(images / "pages.tif", save_all=True, append_images=[page])
    os.mkfifo(images / "pipe.png")
    (masks / "type.png").rename(masks / "type.TIF")
    Image.new("L", (16, 16), 1).save(masks / "wide.PNG")
    bad = cut(tmp_path)["bad_regions"]
    for stem, part in {
        "cmyk": "pixel format CMYK, not an 8-bit RGB image; convert it",
        "deep": "16 bits per channel; save it with 8",
        "lab": "pixel format LAB",
        "other": "other.bmp: neither PNG nor JPEG nor TIFF; save it as PNG",
        "pages": "2 pictures in one file",
        "pipe": "a named pipe, not a file",
        "type": "type.TIF: masks are read from PNG only; save it as PNG",
        "wide": "has the same stem; remove one",
        "x": "x.png: X.png differs only in upper and lower case; rename one",
        "X": "X.png: x.png differs only in upper and lower case; rename one",
        "line\nbreak": r"'line\nbreak' has characters that do not print",
        240 * "n": "the names of its patches would be too long; shorten it",
    }.items():
        assert part in bad.pop(stem)
    assert not bad


@pytest.mark.skipif(not LUNG.is_dir(), reason="the lung regions are not part of the repository")
def test_lung_regions(tmp_path):
    dataset = load_dataset("wsss4luad", "")
    summary = cut_patches(
        LUNG / "images",
        LUNG / "masks",
        tmp_path / "lung",
        MaskCodes(dataset, {"tumor": (0,), "stroma": (1,), "normal": (2,)}, excluded=(3,)),
        Cutting(patch=112, stride=112, resize=56, shares=(0.7, 0.15, 0.15), seed=0),
        workers=2,
    )
    assert sum(summary["regions"].values()) == 67 and not summary["bad_regions"]
    dataset = load_dataset("", tmp_path / "lung")
    patch_checks.check_patches(
        folders.list_labeled_patches(tmp_path / "lung", "train", dataset), 56, dataset
    )
    for split in SPLITS:
        patches = folders.list_annotated_patches(tmp_path / "lung", split, dataset)
        patch_checks.check_patches(patches, 56, dataset)
        assert any("normal" in label for label in summary["labels"][split])
