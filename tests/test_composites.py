"""Patches of one color for each class, with a white bar, so that a pixel says what its mask is."""

import re

import cv2
import jax
import numpy as np
import pytest

from configs import base
from data import patch_files
from data.dataset import derive_label, load_dataset
from tests.conftest import SIZE, tiny_phase2
from wsss_jax import inputs, sources
from wsss_jax.augmentation.composition import (
    Piece,
    Sizes,
    draw_region,
    make_mosaic,
    paste_region,
)
from wsss_jax.composites import CompositeSource, compose
from wsss_jax.patch_records import PatchRecord

CLASSES, SIDE = 3, 40
SIZES = Sizes(split=0.2, radius=(0.15, 0.35), scale=(0.8, 1.25))
WHITE = 200


class _Drawn:
    """Eleven patches: three with each class alone, one with two, one with none."""

    def __init__(self, labels=("100", "010", "001") * 3 + ("110", "000")):
        self.names = [f"p{i}" for i in range(len(labels))]
        self.records = [PatchRecord(n, " ".join(text), "") for n, text in zip(self.names, labels)]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        label = [int(x) for x in self.records[index].label.split()]
        classes = [c for c, value in enumerate(label) if value]
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        # Red tells the class, and green what is white; patches of several classes have no red.
        image[..., 0] = 50 * (classes[0] + 1) if len(classes) == 1 else 0
        masks = np.full((2, SIDE, SIDE), classes[0] if classes else CLASSES, np.uint8)
        masks[1, 20:] = 2  # a pseudo mask that is wrong
        image[8:12], masks[:, 8:12] = WHITE, CLASSES
        return {
            "image": image,
            "label": np.uint8(label),
            "index": np.int32(index),
            "masks": masks,
        }


def _make(mosaic=0.0, paste=0.0, seed=1, source=None):
    return CompositeSource(source or _Drawn(), CLASSES, seed, mosaic, paste, SIZES)


def _assert_masks_are_true(element):
    image, masks = element["image"], element["masks"]
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8
    assert masks.shape == (2, SIDE, SIDE) and masks.dtype == np.uint8
    np.testing.assert_array_equal(masks[0], masks[1])  # what is true is true for every layer
    tissue, white = image[..., 1] == 0, image[..., 1] == WHITE  # between them: interpolated
    assert (tissue | white).mean() > 0.8
    np.testing.assert_array_equal(masks[0][tissue], image[tissue][:, 0] // 50 - 1)
    assert (masks[0][white] == CLASSES).all()
    assert element["label"].tolist() == [int((masks == c).any()) for c in range(CLASSES)]


def test_a_mosaic_is_four_patches_with_true_masks():
    source = _make(mosaic=1.0)
    elements = [source.read_in_epoch(0, i) for i in range(len(source))]
    for index, element in enumerate(elements):
        _assert_masks_are_true(element)
        assert element["index"] == index and element.keys() == source[index].keys()
    corners = {
        tuple(e["image"][r, c, 0] for r in (0, -1) for c in (0, -1) if e["image"][r, c, 1] == 0)
        for e in elements
    }
    assert len(corners) > 5
    labels = {tuple(e["label"]) for e in elements}
    assert max(map(sum, labels)) == 3


def test_the_quarters_meet_at_a_point():
    """Four patches of one value, at the shares of the side that the point may have."""
    pieces = [
        Piece(np.full((30, 50, 3), i + 1, np.uint8), np.full((1, 30, 50), i, np.uint8))
        for i in range(4)
    ]
    points = set()
    for seed in range(60):
        mosaic = make_mosaic(np.random.default_rng(seed), pieces, SIZES)
        np.testing.assert_array_equal(mosaic.image, (mosaic.masks[0] + 1)[..., None].repeat(3, -1))
        mask = mosaic.masks[0]
        row, column = (mask[:, 0] == 0).sum(), (mask[0] == 0).sum()
        expected = np.empty((30, 50))
        expected[:row, :column], expected[:row, column:] = 0, 1
        expected[row:, :column], expected[row:, column:] = 2, 3
        np.testing.assert_array_equal(mask, expected)
        points.add((row, column))
    rows, columns = zip(*points)
    assert 6 <= min(rows) < 9 and 21 < max(rows) <= 24
    assert 10 <= min(columns) < 15 and 35 < max(columns) <= 40


def test_a_pasted_region_lies_on_a_patch_of_another_class():
    source = _make(paste=1.0)
    elements = [source.read_in_epoch(epoch, 3) for epoch in range(30)]
    for element in elements:
        _assert_masks_are_true(element)
    assert sum(element["label"].sum() == 2 for element in elements) >= 28
    assert len({tuple(element["label"]) for element in elements}) >= 3


def test_only_what_is_inside_the_curve_is_pasted():
    rng = np.random.default_rng(3)
    ground = Piece(rng.integers(0, 100, (SIDE, SIDE, 3), np.uint8), np.zeros((1, SIDE, SIDE)))
    other = Piece(rng.integers(100, 200, (SIDE, SIDE, 3), np.uint8), np.ones((1, SIDE, SIDE)))
    pasted = paste_region(rng, ground, other, SIZES)
    inside = pasted.masks[0] == 1
    assert 0.01 < inside.mean() < 0.9
    np.testing.assert_array_equal(pasted.image[~inside], ground.image[~inside])
    assert (pasted.image[inside] >= 100).all()


def test_the_curve_is_closed_and_of_the_size_that_was_asked_for():
    rng = np.random.default_rng(4)
    areas = []
    for _ in range(40):
        inside = draw_region(rng, (400, 400), (0.1, 0.1))
        pieces, _ = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
        # One piece without holes; one that lies beyond a border may come in again beside it.
        touches = inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any()
        assert touches or pieces == 2
        if not touches:
            areas.append(inside.sum() / (np.pi * 40**2))
    # A circle of radius r with waves has the area pi r^2 (1 + sum of h^2 / 2).
    assert len(areas) > 10 and min(areas) > 0.98 and max(areas) < 1.13


def test_tissue_is_shifted_flipped_and_scaled():
    """A ramp: its slope in the mosaic says how it was scaled, and its sign how it was flipped."""
    ramp = np.repeat(np.arange(0, 200, 2, np.uint8)[None, :, None], 3, axis=-1).repeat(100, axis=0)
    piece = Piece(ramp, np.zeros((1, 100, 100), np.uint8))
    slopes, starts = [], set()
    for seed in range(40):
        part = make_mosaic(np.random.default_rng(seed), [piece] * 4, SIZES).image[0, :, 0]
        steps = np.diff(part[:16].astype(int))[2:]
        slopes.append(steps.mean() / 2)
        starts.add(int(part[0]))
    assert min(slopes) < -0.8 and max(slopes) > 0.8 and len(starts) > 15
    assert 0.7 < np.abs(slopes).min() < 0.9 and 1.1 < np.abs(slopes).max() < 1.4


def test_the_shares_of_composed_examples():
    source = _make(mosaic=0.3, paste=0.2)
    replaced = 0
    for epoch in range(30):
        for index in range(len(source)):
            element, own = source.read_in_epoch(epoch, index), source[index]
            replaced += (element["image"] != own["image"]).any()
    assert 0.4 < replaced / 330 < 0.6


def test_patches_with_several_classes_or_none_are_not_cut():
    """Their red is 0."""
    source = _make(mosaic=0.5, paste=0.5)
    for index in range(60):
        image = source.read_in_epoch(index, index % 11)["image"]
        assert (image[..., 0] > 0).all()


def test_classes_are_drawn_as_often_as_labels_show_them():
    """Of 24 classes in the labels, class 2 is one; each class is alone in one patch only."""
    labels = ("100", "010", "001") + ("110",) * 10 + ("100",)
    source = _make(mosaic=1.0, source=_Drawn(labels))
    reds = [source.read_in_epoch(e, 0)["image"][[0, 0, -1, -1], [0, -1, 0, -1]] for e in range(250)]
    corners = np.concatenate(reds)
    counts = np.bincount(corners[corners[:, 1] == 0, 0] // 50 - 1, minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), [12 / 24, 11 / 24, 1 / 24], atol=0.05)

    pasting = _make(paste=1.0, source=_Drawn(labels))
    shown = sum(pasting.read_in_epoch(epoch, 0)["label"] for epoch in range(250))
    assert shown[2] < 0.25 * shown[:2].min()


def test_what_replaces_an_example_follows_from_seed_epoch_and_index():
    one, again, other = _make(mosaic=1.0), _make(mosaic=1.0), _make(mosaic=1.0, seed=2)
    first = one.read_in_epoch(2, 5)["image"]
    np.testing.assert_array_equal(first, again.read_in_epoch(2, 5)["image"])
    for different in (one.read_in_epoch(3, 5), one.read_in_epoch(2, 6), other.read_in_epoch(2, 5)):
        assert (different["image"] != first).any()


def test_batches_know_their_epoch_and_go_on_from_any_step():
    source = _make(mosaic=0.5, paste=0.3)
    order = inputs.Order(seed=3, epochs=3)
    whole = list(inputs.read_batches(source, 4, workers=0, order=order))
    assert len(whole) == 9
    for number, batch in enumerate(whole):
        for row, index in enumerate(batch["index"]):
            expected = source.read_in_epoch(number // 3, int(index))
            np.testing.assert_array_equal(batch["image"][row], expected["image"])
    for start in (1, 5):
        rest = list(inputs.read_batches(source, 4, workers=0, order=order._replace(start=start)))
        for one, other in zip(rest, whole[start:], strict=True):
            jax.tree.map(np.testing.assert_array_equal, one, other)


def _write_true_masks(folder, source, dataset):
    """Writes a mask of its first class, or of none, for every patch."""
    for index, name in enumerate(source.names):
        label = source[index]["label"]
        value = int(label.argmax()) if label.any() else dataset.excluded
        patch_files.write_mask(
            folder / f"{name}.png", np.full((SIZE, SIZE), value, np.uint8), dataset
        )


@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_patches_of_files_are_composed_by_any_number_of_workers(kind, tissue_dir, tmp_path):
    config, dataset = tiny_phase2("unused", layers=("b5_2", "bn7")), load_dataset("", tissue_dir)
    config.data.root, config.data.patch_size, config.data.source = str(tissue_dir), SIZE, kind
    config.augment.mosaic, config.augment.paste = 0.5, 0.3
    _write_true_masks(tmp_path, sources.open_source(config.data, dataset, "train"), dataset)
    source = sources.open_source(config.data, dataset, "train", [tmp_path] * 2)
    composed = compose(source, config, dataset.num_classes)
    assert composed.names == source.names and composed.records == source.records
    order = inputs.Order(seed=0, epochs=2, start=1)
    alone = list(inputs.read_batches(composed, 5, workers=0, order=order))
    workers = 2 if kind == "folder" else 0  # processes take seconds to start
    shared = list(inputs.read_batches(composed, 5, workers=workers, order=order))
    plain = list(inputs.read_batches(source, 5, workers=0, order=order))
    for one, other in zip(alone, shared, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert [b["index"].tolist() for b in plain] == [b["index"].tolist() for b in alone]
    changed = [(a["image"] != p["image"]).any(axis=(1, 2, 3)) for a, p in zip(alone, plain)]
    assert 0.4 < np.concatenate(changed).mean() < 1
    for batch in alone:
        assert batch["masks"].shape == (5, 2, SIZE, SIZE)
        for label, masks in zip(batch["label"], batch["masks"]):
            seen = derive_label(masks[0], dataset)
            assert (label >= seen).all()


def test_nothing_is_composed_where_it_is_off():
    source = _Drawn()
    assert compose(source, base.phase2("m"), CLASSES) is source
    assert compose(source, base.phase1(""), CLASSES) is source


@pytest.mark.parametrize(
    ("field", "labels", "words"),
    [
        ("mosaic", ("110", "000"), "augment.mosaic does nothing: .* show 0 of the classes\n"),
        ("paste", ("110", "000"), "augment.paste does nothing: .* show 0 of the classes, and it"),
        ("paste", ("010", "010", "111"), "show 1 of the classes, and it takes two"),
    ],
)
def test_without_patches_of_a_single_class_nothing_is_composed(field, labels, words, capsys):
    """`variant=tuned` composes, and must train data sets that have no such patches, too."""
    config = base.phase2("m")
    config.augment[field] = 0.5
    source = _Drawn(labels)
    assert compose(source, config, CLASSES) is source
    assert re.search(words, capsys.readouterr().out)
    config.augment.mosaic, config.augment.paste = 0.5, 0.5
    with_mosaics = compose(source, config, CLASSES)
    assert (with_mosaics is source) == ("010" not in labels)
