import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from wsss_jax import optimizers


def _draw_parameters(rng):
    return {
        "b2": {"kernel": rng.normal(size=3), "bias": rng.normal(size=3)},
        "fc8": {"kernel": rng.normal(size=3)},
    }


def _take_steps(optimizer, params, gradients):
    """Returns the parameters after a step with each of the gradients."""
    transformation = optimizers.make_optimizer(optimizer, 5, head_modules=("fc8",))
    state = transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


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
    transformation = optimizers.make_optimizer(optimizer, 5, head_modules=("fc8",))
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


def test_adamw_equals_that_of_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.kind, optimizer.weight_decay, optimizer.betas = "adamw", 0.1, (0.8, 0.95)
    rng = np.random.default_rng(0)
    params, gradients = _draw_parameters(rng), [_draw_parameters(rng) for _ in range(4)]
    groups = {("b2", "kernel"): (1, 0.1), ("b2", "bias"): (2, 0.0), ("fc8", "kernel"): (10, 0.1)}
    theirs = {path: torch.tensor(params[path[0]][path[1]]) for path in groups}
    reference = torch.optim.AdamW(
        [
            {"params": theirs[path], "lr": 0.01 * factor, "weight_decay": decay}
            for path, (factor, decay) in groups.items()
        ],
        betas=(0.8, 0.95),
        eps=1e-8,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: (1 - step / 5) ** 0.9)
    for gradient in gradients:
        for (module, leaf), tensor in theirs.items():
            tensor.grad = torch.tensor(gradient[module][leaf])
        reference.step()
        schedule.step()
    ours = _take_steps(optimizer, params, gradients)
    for (module, leaf), tensor in theirs.items():
        np.testing.assert_allclose(ours[module][leaf], tensor.numpy(), rtol=1e-5)


def test_the_gradient_is_clipped_by_the_norm_of_all_parameters():
    """Before weight decay, which it leaves alone, and before the factors of the groups."""
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm = 0.0, 0.1, 1.0
    rng = np.random.default_rng(0)
    params, small = _draw_parameters(rng), _draw_parameters(rng)
    norm = np.sqrt(sum((leaf**2).sum() for leaves in small.values() for leaf in leaves.values()))
    for scale, expected in ((0.5 / norm, 0.5 / norm), (7.0, 1.0 / norm)):
        given = {m: {k: scale * v for k, v in leaves.items()} for m, leaves in small.items()}
        moved = _take_steps(optimizer, params, [given])
        for module, leaf, factor, decay in (
            ("b2", "kernel", 1, 0.1),
            ("b2", "bias", 2, 0.0),
            ("fc8", "kernel", 10, 0.1),
        ):
            before = params[module][leaf]
            step = 0.01 * factor * (expected * small[module][leaf] + decay * before)
            np.testing.assert_allclose(moved[module][leaf], before - step, rtol=1e-5)


def test_without_clipping_the_state_is_that_of_earlier_runs():
    optimizer = base.phase1("luad_histoseg").optimizer
    params = _draw_parameters(np.random.default_rng(0))
    state = optimizers.make_optimizer(optimizer, 5, ("fc8",)).init(params)
    assert set(state.inner_states) == {"weight", "bias", "head_weight", "head_bias"}
    assert len(jax.tree.leaves(state)) == 3 + 4  # velocities, and the steps of four schedules


def test_nesterov_equals_that_of_pytorch():
    """And scales do not decay where that is switched off."""
    torch = pytest.importorskip("torch")
    optimizer = base.phase1("luad_histoseg").optimizer
    optimizer.momentum, optimizer.nesterov, optimizer.weight_decay = 0.9, True, 0.1
    optimizer.decay_scales, optimizer.bias_multiplier = False, 1.0
    rng = np.random.default_rng(0)

    def draw():
        return {"conv": {leaf: rng.normal(size=3) for leaf in ("kernel", "bias", "scale")}}

    params, gradients = draw(), [draw() for _ in range(4)]
    theirs = {leaf: torch.tensor(value) for leaf, value in params["conv"].items()}
    reference = torch.optim.SGD(
        [
            {"params": tensor, "weight_decay": 0.1 if leaf == "kernel" else 0.0}
            for leaf, tensor in theirs.items()
        ],
        lr=0.01,
        momentum=0.9,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: (1 - step / 5) ** 0.9)
    for gradient in gradients:
        for leaf, tensor in theirs.items():
            tensor.grad = torch.tensor(gradient["conv"][leaf])
        reference.step()
        schedule.step()
    ours = _take_steps(optimizer, params, gradients)
    for leaf, tensor in theirs.items():
        np.testing.assert_allclose(ours["conv"][leaf], tensor.numpy(), rtol=1e-5)
