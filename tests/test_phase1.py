import jax.numpy as jnp
import numpy as np

from configs import base
from data.synthetic import DATASET
from tests.conftest import draw_variables, tiny_phase1
from wsss_jax import pixels, sources
from wsss_jax.methods import phase1
from wsss_jax.methods.losses import multilabel_soft_margin
from wsss_jax.training.validation import make_validation


def test_multilabel_soft_margin_is_the_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)) * 4, rng.integers(0, 2, (5, 3))
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(sigmoid) + (1 - labels) * np.log(1 - sigmoid)).mean(axis=1)
    np.testing.assert_allclose(
        multilabel_soft_margin(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5
    )


def _setup(relu: bool):
    config = base.phase1("luad_histoseg")
    config.model.width, config.model.batch_norm, config.cam.relu = 1 / 16, "trained", relu
    model = phase1.build_network(config, 4)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    variables = draw_variables(model, np.zeros((1, 32, 32, 3)))
    return config, model, variables, image


def test_segmentation_is_made_of_the_predicted_classes():
    config, model, variables, image = _setup(relu=False)
    prediction, probability, *_ = phase1.predict(config, model, variables, image)
    logits, taps = model.apply(variables, pixels.scale(image, config.model), train=False)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert prediction.shape == (3, 32, 32) and prediction.dtype == jnp.uint8
    # Where the half-pixel resize copies a value: 4 x 4 maps to 32 x 32 at the corners.
    maps = np.einsum("bhwd,dc->bhwc", taps["bn7"], variables["params"]["fc8"]["kernel"][0, 0])
    maps = np.where(np.asarray(probability)[:, None, None] > 0.25, maps, -np.inf)
    np.testing.assert_array_equal(prediction[:, ::31, ::31], maps[:, ::3, ::3].argmax(axis=-1))


def test_relu_of_the_maps_is_a_field():
    """Where every map is negative, clipped ones leave class 0 and others their strongest."""
    for relu in (True, False):
        config, model, variables, image = _setup(relu)
        kernel = variables["params"]["fc8"]["kernel"]
        variables["params"]["fc8"]["kernel"] = -1e-3 * jnp.abs(kernel).at[..., 0].multiply(10)
        config.cam.threshold = 0.0
        prediction = phase1.predict(config, model, variables, image).label_maps
        assert (prediction == 0).all() if relu else (prediction != 0).any()


def test_validation_without_masks_scores_the_labels(tissue_dir, tmp_path):
    (tmp_path / "val").mkdir()
    for path in (tissue_dir / "train").iterdir():
        (tmp_path / "val" / path.name).write_bytes(path.read_bytes())
    config = tiny_phase1(tmp_path)
    source = sources.open_source(config.data, DATASET, "val")
    model = phase1.build_network(config, 4)
    variables = draw_variables(model, np.zeros((1, 32, 32, 3)))
    scores = make_validation(config, DATASET.num_classes, source)(variables)
    assert scores.keys() == {"val_exact_match", "val_patch_accuracy", "val_f1", "val_mean_f1"}
    assert 0 <= scores["val_patch_accuracy"] <= 1
