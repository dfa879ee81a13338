import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from wsss_jax import schedules


def test_mu_of_the_paper():
    pda = base.phase1("luad_histoseg", "paper").pda
    mu = [schedules.mu(epoch, pda) for epoch in range(40)]
    assert mu[:3] == [1, 1, 1]
    assert mu[3] == pytest.approx(0.985)
    assert mu[19] == pytest.approx(0.985**17)
    assert mu[30] == pytest.approx(0.985**28) and mu[30] > 0.65
    assert mu[31:] == [0.65] * 9


def test_mu_of_the_released_code():
    pda = base.phase1("luad_histoseg", "reference").pda
    mu = [schedules.mu(epoch, pda) for epoch in range(40)]
    assert mu[:3] == [0, 0, 0]
    assert mu[3] == pytest.approx(0.941192)
    assert mu[22] == pytest.approx(0.98**22) and mu[22] < 0.65 < mu[21]
    assert mu[39] == mu[22]


def test_mu_constant_and_off():
    assert {schedules.mu(e, base.phase1("", "paper", "constant").pda) for e in range(5)} == {0.7}
    assert {schedules.mu(e, base.phase1("", "paper", "off").pda) for e in range(5)} == {0.0}


def test_learning_rates_of_the_groups():
    optimizer = base.phase1("luad_histoseg", "reference").optimizer
    rates = schedules.learning_rates(optimizer, total_steps=10)
    assert {name: float(rate(0)) for name, rate in rates.items()} == pytest.approx(
        {"weight": 0.01, "bias": 0.02, "head_weight": 0.1, "head_bias": 0.2}
    )
    assert float(rates["weight"](4)) == pytest.approx(0.01 * 0.6**0.9)
    assert float(rates["weight"](10)) == 0


def test_the_learning_rate_grows_with_the_batch_if_configured():
    optimizer = base.phase1("luad_histoseg").optimizer
    assert schedules.scale_learning_rate(optimizer, 80).learning_rate == 0.01
    optimizer.base_batch_size = 20
    assert schedules.scale_learning_rate(optimizer, 80).learning_rate == pytest.approx(0.04)
    assert schedules.scale_learning_rate(optimizer, 20).learning_rate == 0.01


def test_sgd_equals_that_of_pytorch():
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.momentum, optimizer.weight_decay = 0.9, 0.1
    rng = np.random.default_rng(0)
    params = {
        "b2": {"kernel": rng.normal(size=3), "bias": rng.normal(size=3)},
        "fc8": {"kernel": rng.normal(size=3)},
    }
    factors = {("b2", "kernel"): (1, 0.1), ("b2", "bias"): (2, 0), ("fc8", "kernel"): (10, 0.1)}
    expected = {path: params[path[0]][path[1]].copy() for path in factors}
    velocity = dict.fromkeys(factors, 0.0)

    params = {m: {k: jnp.asarray(v) for k, v in leaves.items()} for m, leaves in params.items()}
    transformation = schedules.sgd(optimizer, 5, head_modules=("fc8",))
    state = transformation.init(params)
    for step in range(3):
        gradients = {
            m: {k: jnp.asarray(rng.normal(size=3)) for k in leaves} for m, leaves in params.items()
        }
        updates, state = transformation.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for (module, leaf), (factor, decay) in factors.items():
            path = (module, leaf)
            gradient = np.asarray(gradients[module][leaf]) + decay * expected[path]
            velocity[path] = 0.9 * velocity[path] + gradient
            rate = 0.01 * factor * (1 - step / 5) ** 0.9
            expected[path] = expected[path] - rate * velocity[path]
    for (module, leaf), value in expected.items():
        np.testing.assert_allclose(params[module][leaf], value, rtol=1e-5)
