import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import metrics


def count_by_hand(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.zeros((num_classes, num_classes + 1), np.int64)
    for row, column in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if 0 <= row < num_classes:
            counts[row, column if 0 <= column < num_classes else num_classes] += 1
    return counts


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of 3 patches with 3 classes, the excluded index and 255."""
    rng = np.random.default_rng(0)
    values = np.array([0, 1, 2, 3, 255], np.uint8)
    return rng.choice(values, (3, 7, 5)), rng.choice(values, (3, 7, 5))


def test_counts_each_example_exactly(maps):
    truth, prediction = maps
    counts = metrics.confusion_matrices(truth, prediction, 3)
    assert counts.dtype == jnp.int32
    expected = [count_by_hand(t, p, 3) for t, p in zip(truth, prediction, strict=True)]
    np.testing.assert_array_equal(counts, expected)


def test_integers_of_any_width_and_sign_count_alike(maps):
    truth, prediction = (array.astype(np.int32) for array in maps)
    expected = metrics.confusion_matrices(truth, prediction, 3)
    truth, prediction = (np.where(array == 255, -1, array) for array in (truth, prediction))
    np.testing.assert_array_equal(metrics.confusion_matrices(truth, prediction, 3), expected)


def test_many_classes_do_not_overflow_uint8():
    truth = np.arange(40, dtype=np.uint8)[None]
    np.testing.assert_array_equal(metrics.confusion_matrices(truth, truth, 40)[0], np.eye(40, 41))


def test_scores_by_hand():
    # 8 pixels of class 0, of which 1 was called white; 2 of class 1, one of them right.
    scores = metrics.segmentation_scores(np.array([[6, 1, 1], [1, 1, 0]]))
    assert scores["iou"] == pytest.approx([6 / 9, 1 / 3])
    assert scores["miou"] == pytest.approx(1 / 2)
    assert scores["fwiou"] == pytest.approx(0.8 * 6 / 9 + 0.2 / 3)
    assert scores["acc"] == pytest.approx(0.7)
    assert scores["class_acc"] == pytest.approx((6 / 8 + 1 / 2) / 2)


def test_class_in_neither_map_is_left_out_but_a_false_alarm_is_not():
    absent = metrics.segmentation_scores(np.array([[4, 0, 0, 0], [0, 6, 0, 0], [0, 0, 0, 0]]))
    assert np.isnan(absent["iou"][2])
    assert absent["miou"] == absent["fwiou"] == absent["class_acc"] == 1
    alarm = metrics.segmentation_scores(np.array([[4, 0, 0, 0], [0, 3, 3, 0], [0, 0, 0, 0]]))
    assert alarm["iou"] == [1, 0.5, 0]
    assert alarm["miou"] == 0.5
    assert alarm["class_acc"] == 0.75


@pytest.mark.filterwarnings("error")
def test_nothing_counted_gives_nan_without_warnings():
    scores = metrics.segmentation_scores(np.zeros((2, 3), np.int64))
    assert np.isnan([*scores.pop("iou"), *scores.values()]).all()


def test_more_pixels_than_int32_holds():
    scores = metrics.segmentation_scores(np.array([[3 * 2**31, 2**31]], np.int64))
    assert scores["acc"] == 0.75


def test_patch_miou_ranks_patches():
    perfect, half, empty = [[5, 0, 0], [0, 5, 0]], [[5, 0, 5], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]
    miou = metrics.patch_miou(np.array([perfect, half, empty]))
    np.testing.assert_array_equal(miou, [1, 0.5, np.nan])


def test_majority_predicts_the_most_frequent_true_class():
    scores = metrics.segmentation_scores(
        metrics.predict_majority(np.array([[1, 1, 0, 0], [0, 0, 0, 6], [2, 0, 0, 0]]))
    )
    assert scores["iou"] == [0, 0.6, 0]
    assert scores["miou"] == pytest.approx(0.2)
    assert scores["fwiou"] == pytest.approx(0.36)
    assert scores["acc"] == 0.6


def test_multilabel_scores_by_hand():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]])
    probability = np.array([[0.9, 0.1, 0.2], [0.4, 0.8, 0.0], [0.7, 0.6, 0.5]])
    scores = metrics.multilabel_scores(probability, labels)
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["patch_accuracy"] == pytest.approx(7 / 9)
    assert scores["f1"][:2] == pytest.approx([1 / 2, 1])
    assert np.isnan(scores["f1"][2])  # 0.5 is not above the threshold: never predicted or present
    assert scores["mean_f1"] == pytest.approx(3 / 4)


def test_multilabel_threshold():
    scores = metrics.multilabel_scores(np.array([[0.2, 0.05]]), np.array([[1, 0]]), threshold=0.1)
    assert scores["exact_match"] == 1


@pytest.mark.parametrize("seed", range(20))
def test_balanced_thresholds_are_those_of_the_roc_curve(seed):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(5, 200)), 4
    labels = rng.integers(0, 2, (count, classes))
    labels[:2] = [[0] * classes, [1] * classes]
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    if seed % 2:
        scores = np.round(scores, 1)  # many are equal
    found = metrics.balanced_thresholds(scores.astype(np.float32), labels)
    scores = scores.astype(np.float32).astype(np.float64)
    for index in range(classes):
        curve = sklearn_metrics.roc_curve(
            labels[:, index], scores[:, index], drop_intermediate=False
        )
        false, true, thresholds = (values[1:] for values in curve)  # without that of infinity
        expected = np.interp(0, true - (1 - false), thresholds)
        np.testing.assert_allclose(found[index], expected, rtol=1e-12, atol=1e-12)


def test_balanced_thresholds_by_hand():
    scores = np.array([[0.9], [0.8], [0.3], [0.1]])
    # Missed and falsely seen are equal at the lower of the two that are there
    assert metrics.balanced_thresholds(scores, np.array([[1], [1], [0], [0]])) == 0.8
    # Half of them missed, half falsely seen
    assert metrics.balanced_thresholds(scores, np.array([[1], [0], [1], [0]])) == 0.8
    # Present - (1 - false) is 0 - 2/3 at .9 and 1 - 2/3 at .8: two thirds of the way
    third = metrics.balanced_thresholds(scores, np.array([[0], [1], [0], [0]]))
    np.testing.assert_allclose(third, 0.9 - 0.1 * 2 / 3)
    assert np.isnan(metrics.balanced_thresholds(scores, np.ones((4, 1)))).all()
    assert np.isnan(metrics.balanced_thresholds(np.zeros((0, 3)), np.zeros((0, 3)))).all()
