import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    resize_align_corners,
    resize_half_pixel,
)

# `vmap` with an axis name runs the same collectives as `pmap`, on a single device.
REPLICAS = 4


def test_conv_pads_symmetrically():
    x = np.random.default_rng(0).standard_normal((1, 6, 6, 2)).astype(np.float32)
    conv = Conv(3, 3, stride=2, dilation=2, use_bias=True)
    variables = conv.init(jax.random.key(0), x)
    bias = jnp.arange(3.0)
    variables = {"params": {**variables["params"], "bias": bias}}
    kernel = np.asarray(variables["params"]["kernel"])
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = np.zeros((1, 3, 3, 3), np.float32)
    for row in range(3):
        for column in range(3):
            window = padded[0, 2 * row : 2 * row + 5 : 2, 2 * column : 2 * column + 5 : 2]
            expected[0, row, column] = np.einsum("hwd,hwdf->f", window, kernel) + bias
    np.testing.assert_allclose(conv.apply(variables, x), expected, atol=1e-5)


def _batch_norm_case():
    rng = np.random.default_rng(1)
    x = (3 + 2 * rng.standard_normal((8, 3, 5, 4))).astype(np.float32)
    variables = {
        "params": {
            "scale": rng.uniform(0.5, 2, 4).astype(np.float32),
            "bias": rng.standard_normal(4).astype(np.float32),
        },
        "batch_stats": {
            "mean": rng.standard_normal(4).astype(np.float32),
            "var": rng.uniform(0.5, 2, 4).astype(np.float32),
        },
    }
    return x, variables


def _expected_batch_norm(x, variables, counted):
    """Normalizes all examples by the counted ones, as PyTorch's BatchNorm2d does."""
    flat = x[counted].reshape(-1, x.shape[-1]).astype(np.float64)
    mean, var = flat.mean(0), flat.var(0)
    params, running = variables["params"], variables["batch_stats"]
    y = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    return (
        y,
        0.9 * running["mean"] + 0.1 * mean,
        0.9 * running["var"] + 0.1 * flat.var(0, ddof=1),
    )


@pytest.mark.parametrize("counted", [np.arange(8), np.array([0, 1, 2, 4, 6])])
def test_batch_norm_equals_the_torch_formula(counted):
    x, variables = _batch_norm_case()
    weight = np.isin(np.arange(8), counted).astype(np.float32)
    y, updates = BatchNorm().apply(
        variables, x, use_running_average=False, weight=weight, mutable=["batch_stats"]
    )
    expected, mean, var = _expected_batch_norm(x, variables, counted)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["var"], var, atol=1e-5)


def test_batch_norm_over_replicas_with_unequal_shards():
    x, variables = _batch_norm_case()
    counted = np.array([0, 1, 2, 4, 5])  # replicas hold 2, 1, 2 and 0 counted examples
    weight = np.isin(np.arange(8), counted).astype(np.float32)
    norm = BatchNorm(axis_name="batch")

    @functools.partial(jax.vmap, axis_name="batch")
    def replica(x, weight):
        return norm.apply(
            variables, x, use_running_average=False, weight=weight, mutable=["batch_stats"]
        )

    y, updates = replica(x.reshape(REPLICAS, 2, *x.shape[1:]), weight.reshape(REPLICAS, 2))
    expected, mean, var = _expected_batch_norm(x, variables, counted)
    np.testing.assert_allclose(np.asarray(y).reshape(x.shape), expected, atol=1e-5)
    for index in range(REPLICAS):
        np.testing.assert_allclose(updates["batch_stats"]["mean"][index], mean, atol=1e-6)
        np.testing.assert_allclose(updates["batch_stats"]["var"][index], var, atol=1e-5)


def test_batch_norm_with_running_average_leaves_the_statistics():
    x, variables = _batch_norm_case()
    y, updates = BatchNorm().apply(variables, x, use_running_average=True, mutable=["batch_stats"])
    params, running = variables["params"], variables["batch_stats"]
    expected = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    np.testing.assert_allclose(y, expected * params["scale"] + params["bias"], atol=1e-5)
    np.testing.assert_array_equal(updates["batch_stats"]["mean"], running["mean"])


def test_batch_norm_keeps_float32_statistics_in_bfloat16():
    x, variables = _batch_norm_case()
    y, updates = BatchNorm(dtype=jnp.bfloat16).apply(
        variables,
        jnp.asarray(x, jnp.bfloat16),
        use_running_average=False,
        mutable=["batch_stats"],
    )
    assert y.dtype == jnp.bfloat16
    assert updates["batch_stats"]["var"].dtype == jnp.float32


@pytest.mark.parametrize("channels", [True, False])
def test_dropout_is_the_same_on_one_and_on_many_devices(channels):
    x = np.ones((8, 3, 3, 16), np.float32)
    rngs = {"dropout": jax.random.key(5)}
    whole = Dropout(0.4, channels=channels).apply({}, x, deterministic=False, rngs=rngs)

    def replica(x, position):
        layer = Dropout(0.4, channels=channels)
        return layer.apply({}, x, deterministic=False, position=position, rngs=rngs)

    parts = [replica(x[rows], rows) for rows in np.split(np.arange(8), REPLICAS)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_dropout_drops_at_its_rate_and_scales_the_rest():
    x = np.full((64, 4, 4, 32), 3.0, np.float32)
    layer = Dropout(0.25)
    y = np.asarray(layer.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, 4.0}
    assert abs((y == 0).mean() - 0.25) < 0.01
    assert len({row.tobytes() for row in y}) == len(y)
    np.testing.assert_array_equal(layer.apply({}, x, deterministic=True), x)


def test_channel_dropout_drops_whole_maps():
    x = np.ones((4, 5, 5, 32), np.float32)
    layer = Dropout(0.5, channels=True)
    y = np.asarray(layer.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0 < (y == 0).mean() < 1


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (1, 5), (4, 6)])
def test_resize_align_corners(size):
    x = np.random.default_rng(2).standard_normal((2, 4, 6, 3)).astype(np.float32)
    expected = np.zeros((2, *size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            expected[:, row, column] = _bilinear(
                x,
                row * 3 / max(size[0] - 1, 1),
                column * 5 / max(size[1] - 1, 1),
            )
    np.testing.assert_allclose(resize_align_corners(jnp.asarray(x), size), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (2, 3), (5, 7)])
def test_resize_half_pixel(size):
    x = np.random.default_rng(3).standard_normal((2, 4, 6, 3)).astype(np.float32)
    expected = np.zeros((2, *size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            expected[:, row, column] = _bilinear(
                x,
                np.clip((row + 0.5) * 4 / size[0] - 0.5, 0, 3),
                np.clip((column + 0.5) * 6 / size[1] - 0.5, 0, 5),
            )
    np.testing.assert_allclose(resize_half_pixel(jnp.asarray(x), size), expected, atol=1e-5)


def _bilinear(x, row, column):
    top, left = int(row), int(column)
    bottom, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
    down, across = row - top, column - left
    return (
        x[:, top, left] * (1 - down) * (1 - across)
        + x[:, bottom, left] * down * (1 - across)
        + x[:, top, right] * (1 - down) * across
        + x[:, bottom, right] * down * across
    )
