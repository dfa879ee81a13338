"""data/synthetic.py: drawn tissue fits its mask, and color does not reveal the class."""

import itertools

import cv2
import numpy as np
import pytest

from data import folders, patch_checks
from data.dataset import derive_label, load_dataset
from data.synthetic import DATASET, draw_patch, write_dataset
from wsss_jax.errors import InputError

SIZE = 96


@pytest.fixture(scope="module")
def patches():
    return [draw_patch(np.random.default_rng([7, number]), SIZE) for number in range(120)]


def test_shapes_and_shares(patches):
    tissues = np.array([[(mask == value).any() for value in range(5)] for _, mask in patches])
    for image, mask in patches:
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8
    assert set(tissues[:, :4].sum(axis=1)) == {1, 2, 3}
    assert 0.2 < tissues[:, 4].mean() < 0.5
    pixels = np.bincount(np.concatenate([mask.ravel() for _, mask in patches]), minlength=5)
    assert (pixels[:4] / pixels[:4].sum() > 0.17).all()


def test_white_follows_the_brightness_rule(patches):
    for image, mask in patches:
        bright = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) > 200
        np.testing.assert_array_equal(bright, mask == DATASET.excluded)
        _, _, stats, _ = cv2.connectedComponentsWithStats(bright.astype(np.uint8), connectivity=4)
        assert (stats[1:, cv2.CC_STAT_AREA] >= 50).all()


def test_the_same_seed_draws_the_same():
    first, second = (draw_patch(np.random.default_rng(5), 64) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    other, _ = draw_patch(np.random.default_rng(6), 64)
    assert (other != first[0]).any()


def features(patches, function):
    """Returns features (N, F) and class (N,) of every 7th tissue pixel."""
    found = [(function(image)[mask < 4][::7], mask[mask < 4][::7]) for image, mask in patches]
    values, classes = (np.concatenate(part) for part in zip(*found))
    return values, classes


def gaussian_miou(train, test):
    """Returns the mean IoU of a quadratic discriminant fitted on `train`: a Gaussian per class."""
    values, classes = train
    scores = []
    for k in range(4):
        own = values[classes == k]
        away = test[0] - own.mean(axis=0)
        covariance = np.cov(own.T)
        distance = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
        scores.append(-0.5 * (distance + np.linalg.slogdet(covariance)[1]) + np.log(len(own)))
    counts = np.zeros((4, 4))
    np.add.at(counts, (test[1], np.argmax(scores, axis=0)), 1)
    both = np.diag(counts)
    return np.mean(both / (counts.sum(axis=0) + counts.sum(axis=1) - both))


def mean_color(image):
    return cv2.blur(image.astype(np.float32), (9, 9))


def texture(image):
    """Measures how much the brightness varies around each pixel at scales of 1 to 8 pixels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = [cv2.GaussianBlur(gray, (0, 0), sigma) for sigma in (0.7, 1.4, 2.8, 5.6)]
    bands = [np.square(fine - coarse) for fine, coarse in itertools.pairwise(smooth)]
    return np.stack([np.log(cv2.GaussianBlur(band, (0, 0), 6) + 0.1) for band in bands], axis=-1)


def test_texture_separates_the_tissues_and_color_does_not(patches):
    train, test = patches[:80], patches[80:]
    by_color = gaussian_miou(features(train, mean_color), features(test, mean_color))
    by_texture = gaussian_miou(features(train, texture), features(test, texture))
    assert by_color < 0.35
    assert by_texture > 0.45


def test_class_means_of_color_overlap(patches):
    values, classes = features(patches, lambda image: image)
    means = np.stack([values[classes == k].mean(axis=0) for k in range(4)])
    patch_means = np.stack([image.reshape(-1, 3).mean(axis=0) for image, _ in patches])
    assert (np.ptp(means, axis=0) < 1.5 * patch_means.std(axis=0)).all()


def test_write_dataset(tmp_path):
    root = tmp_path / "tissue"
    counts = {"train": 6, "val": 3, "test": 2}
    assert write_dataset(root, counts, 64, seed=1) == DATASET
    dataset = load_dataset("", root)
    assert dataset == DATASET
    train = folders.list_labeled_patches(root, "train", dataset)
    assert len(train) == 6 and all(any(patch.label) for patch in train)
    patch_checks.check_patches(train, 64, dataset)
    for split in ("val", "test"):
        patches = folders.list_annotated_patches(root, split, dataset)
        assert len(patches) == counts[split]
        patch_checks.check_patches(patches, 64, dataset)
    _, mask = draw_patch(np.random.default_rng([1, 0, 0]), 64)
    assert train[0].label == tuple(derive_label(mask, dataset))
    assert [path.name for path in tmp_path.iterdir()] == ["tissue"]
    with pytest.raises(InputError, match="not an empty folder"):
        write_dataset(root, counts, 64, seed=1)


def test_workers_and_counts_change_no_picture(tmp_path):
    write_dataset(tmp_path / "one", {"train": 5}, 64, seed=1)
    write_dataset(tmp_path / "two", {"train": 3}, 64, seed=1, workers=2)
    for path in (tmp_path / "two" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / "train" / path.name).read_bytes()
