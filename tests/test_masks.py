from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from wsss_jax.masks import WhiteRule, find_white_background, label_maps, segmentation


def _min_max_scores(maps, labels):
    """The rule as the paper writes it, for maps that already have the size of the image."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low) * labels[:, None, None]


def test_label_maps_follow_the_min_max_rule():
    maps = np.random.default_rng(0).standard_normal((3, 4, 16, 16)).astype(np.float32)
    labels = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]], np.uint8)
    got, released = (
        jax.jit(partial(label_maps, absent=absent), static_argnums=2)(maps, labels, (16, 16))
        for absent in ("excluded", "zero")
    )
    assert got.dtype == released.dtype == jnp.uint8
    for index in range(3):
        scores = _min_max_scores(maps[index], labels[index])
        np.testing.assert_array_equal(released[index], scores.argmax(0))
        decided = scores.max(0) > 0  # elsewhere absent and present classes tie at 0
        assert decided.mean() > 0.99
        np.testing.assert_array_equal(got[index][decided], scores.argmax(0)[decided])


def test_label_maps_name_present_classes_only():
    maps = -np.ones((2, 3, 4, 4), np.float32)
    labels = np.array([[0, 0, 1], [0, 1, 1]], np.float32)
    got = np.asarray(label_maps(maps, labels, (9, 7), absent="excluded"))
    assert got.shape == (2, 9, 7)
    np.testing.assert_array_equal(got[0], 2)
    np.testing.assert_array_equal(got[1], 1)
    unlabelled = np.zeros_like(labels)
    np.testing.assert_array_equal(label_maps(maps, unlabelled, (9, 7), absent="excluded"), 3)
    np.testing.assert_array_equal(label_maps(maps, unlabelled, (9, 7), absent="zero"), 0)


def test_maps_are_resized_before_they_compete():
    # At 1 -> 4 samples the half-pixel weights of the right column are 0, 0.25, 0.75, 1.
    maps = np.zeros((1, 2, 1, 2), np.float32)
    maps[0, 0, 0] = [1.0, 0.0]
    maps[0, 1, 0] = [0.0, 4.0]
    got = label_maps(maps, np.ones((1, 2)), (1, 4), absent="excluded")
    np.testing.assert_array_equal(got, [[[0, 1, 1, 1]]])


def test_segmentation_removes_improbable_classes():
    cams = np.zeros((1, 3, 2, 2), np.float32)
    cams[0, 0] = 9.0
    cams[0, 1] = [[1, 1], [0, 0]]
    cams[0, 2] = [[0, 2], [2, 0]]
    probability = np.array([[0.25, 0.3, 0.9]], np.float32)
    got = segmentation(cams, probability, (2, 2))
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, [[[1, 2], [2, 0]]])
    everything = segmentation(cams, probability, (2, 2), threshold=0.2)
    np.testing.assert_array_equal(everything, 0)


def test_segmentation_of_negative_maps_never_prefers_a_removed_class():
    cams = np.array([[[[-5.0, -1.0]], [[-2.0, -3.0]], [[9.0, 9.0]]]], np.float32)
    probability = np.array([[0.9, 0.9, 0.1]], np.float32)
    np.testing.assert_array_equal(segmentation(cams, probability, (1, 2)), [[[1, 0]]])


def test_white_background_needs_brightness_and_area():
    image = np.full((40, 40, 3), 120, np.uint8)
    image[0:5, 0:10] = 201  # 50 pixels
    image[10:17, 0:7] = 201  # 49 pixels
    image[20:30, 20:30] = 200  # not above the threshold
    white = find_white_background(image)
    expected = np.zeros((40, 40), bool)
    expected[0:5, 0:10] = True
    np.testing.assert_array_equal(white, expected)
    assert find_white_background(image, WhiteRule(min_area=49)).sum() == 99
    assert find_white_background(image, WhiteRule(199, 51)).sum() == 100


def test_white_areas_that_touch_at_a_corner_are_two():
    image = np.zeros((20, 20, 3), np.uint8)
    image[0:6, 0:6] = 255
    image[6:12, 6:12] = 255
    assert not find_white_background(image).any()
    assert find_white_background(image, WhiteRule(min_area=36)).sum() == 72


def test_an_all_white_and_an_all_dark_patch():
    assert find_white_background(np.full((10, 10, 3), 255, np.uint8)).all()
    assert not find_white_background(np.zeros((10, 10, 3), np.uint8)).any()


def test_gray_is_weighted_as_opencv_does():
    image = np.zeros((10, 10, 3), np.uint8)
    image[:] = (255, 120, 255)  # 0.299 R + 0.587 G + 0.114 B = 175.8; the plain mean is 210
    assert not find_white_background(image).any()
