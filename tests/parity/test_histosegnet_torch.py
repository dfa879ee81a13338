"""HistoSegNet against PyTorch, in float64: forward pass, loss, gradients, steps and Grad-CAM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import base_histosegnet
from wsss_jax.methods import histosegnet
from wsss_jax.models.layers import widen

torch = pytest.importorskip("torch")

from tests.parity import torch_x17  # noqa: E402

WIDTH = 1 / 16
EXACT = {"rtol": 1e-9, "atol": 1e-11}
# ours -> theirs, by the number of the block and of the convolution in it
NORMS = {"1_1": 0, "1_2": 2, "2_1": 5, "2_2": 7, "3_1": 10, "3_2": 12, "3_3": 14}
CASES = [("maximum", 4, (32, 32), 0), ("mean", 3, (34, 45), 1), ("maximum", 1, (19, 24), 2)]


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Both networks with the same weights, and a batch of which the last example only fills it."""
    pooling, classes, size, seed = request.param
    rng = np.random.default_rng(seed)
    config = base_histosegnet.histosegnet("")
    config.background.weight = 0.75
    config.precision, config.model.width, config.model.pooling = "float64", WIDTH, pooling
    config.model.dropout_rates = (0.0,) * 4
    config.augment.flip_horizontal = config.augment.flip_vertical = 0.0
    config.model.mean, config.model.std = (0.757,) * 3, (0.221,) * 3
    config.loss.class_weights = tuple(rng.uniform(1, 9, classes).tolist())
    channels = [widen(depth, WIDTH) for depth in (64, 128, 256)]
    theirs = torch_x17.X17(classes, channels, pooling).double()
    for name, tensor in theirs.state_dict().items():
        if tensor.dtype == torch.float64:
            drawn = rng.normal(size=tuple(tensor.shape))
            tensor.copy_(torch.tensor(np.abs(drawn) + 0.1 if "norms" in name else drawn * 0.3))
    images = rng.integers(0, 256, (4, *size, 3), dtype=np.uint8)
    batch = {
        "image": images,
        "label": rng.integers(0, 2, (4, classes)).astype(np.uint8),
        "weight": np.array([1, 1, 1, 0], np.float64),
        "position": np.arange(4, dtype=np.int32),
    }
    with jax.enable_x64(True):
        yield config, theirs, batch


def _to_ours(theirs, read):
    """Takes the variables of their network, or with `read` what belongs to each of them."""
    params, statistics = {}, {}
    for name, index in NORMS.items():
        conv, norm = theirs.features[str(index)], theirs.norms[str(index)]
        params[f"features_{index}"] = {
            "kernel": read(conv.weight).transpose(2, 3, 1, 0),
            "bias": read(conv.bias),
        }
        params[f"bn{name}"] = {"scale": read(norm.weight), "bias": read(norm.bias)}
        mean, var = norm.running_mean.numpy().copy(), norm.running_var.numpy().copy()
        statistics[f"bn{name}"] = {"mean": mean, "var": var}
    kernel = read(theirs.fc.weight).T[None, None]
    params["fc"] = {"kernel": kernel, "bias": read(theirs.fc.bias)}
    return {"params": params, "batch_stats": statistics}


def _read_value(tensor):
    return tensor.detach().numpy().copy()


def _scale(config, images):
    """Values that PyTorch's networks get: float32 x / 255, then normalized in float64."""
    x = (images.astype(np.float32) / np.float32(255)).astype(np.float64)
    x = (x - np.array(config.model.mean)) / np.array(config.model.std)
    return torch.tensor(x.transpose(0, 3, 1, 2))


def _compare(ours, theirs, **tolerance):
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(ours[path] / scale, value / scale, err_msg=path, **tolerance)


def _their_loss(config, theirs, batch):
    real = batch["weight"] > 0
    logits, _ = theirs(_scale(config, batch["image"][real]))
    labels = torch.tensor(batch["label"][real].astype(np.float64))
    class_weights = torch.tensor(list(config.loss.class_weights), dtype=torch.float64)
    return torch_x17.weighted_loss(logits, labels, class_weights)


def test_loss_gradients_and_statistics(case):
    config, theirs, batch = case
    variables = _to_ours(theirs, _read_value)
    theirs.train()
    loss = _their_loss(config, theirs, batch)
    loss.backward()

    classes = batch["label"].shape[1]
    loss_function = histosegnet.make_loss(config, histosegnet.build_network(config, classes))

    def compute(params):
        everything = {**variables, "params": params}
        totals = {"patches": batch["weight"].sum()}
        return loss_function(everything, batch, totals, {}, jax.random.key(0))

    differentiate = jax.jit(jax.value_and_grad(compute, has_aux=True))
    (value, (statistics, metrics)), gradients = differentiate(variables["params"])
    np.testing.assert_allclose(value, loss.item(), **EXACT)
    assert metrics["loss"] == value
    _compare(gradients, _to_ours(theirs, lambda p: p.grad.numpy())["params"], **EXACT)
    _compare(statistics, _to_ours(theirs, _read_value)["batch_stats"], **EXACT)


def test_steps_of_the_optimizer(case):
    """Nesterov momentum, a rate halved after each quarter, and 5e-4 times squares of kernels."""
    config, theirs, batch = case
    config.optimizer.learning_rate = 0.01
    classes, total = batch["label"].shape[1], 8
    task = histosegnet.make_task(config, classes, total)
    loss_function = histosegnet.make_loss(config, histosegnet.build_network(config, classes))
    variables = _to_ours(theirs, _read_value)
    params, state = variables["params"], task.optimizer.init(variables["params"])
    statistics = variables["batch_stats"]
    theirs.train()
    reference = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def compute(params, statistics):
        everything = {"params": params, "batch_stats": statistics}
        totals = {"patches": batch["weight"].sum()}
        return loss_function(everything, batch, totals, {}, jax.random.key(0))

    differentiate = jax.jit(jax.grad(compute, has_aux=True))
    for step in range(4):
        gradients, (statistics, _) = differentiate(params, statistics)
        updates, state = task.optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)

        reference.param_groups[0]["lr"] = 0.01 * 0.5 ** (step // 2)
        reference.zero_grad()
        kernels = [*(conv.weight for conv in theirs.features.values()), theirs.fc.weight]
        penalty = 5e-4 * sum((kernel**2).sum() for kernel in kernels)
        (_their_loss(config, theirs, batch) + penalty).backward()
        reference.step()
    _compare(params, _to_ours(theirs, _read_value)["params"], rtol=1e-8, atol=1e-9)


def test_predictions_and_grad_cam(case):
    config, theirs, batch = case
    config.crf.iterations = 0
    variables = _to_ours(theirs, _read_value)
    theirs.eval()
    x = _scale(config, batch["image"])
    network = histosegnet.build_network(config, batch["label"].shape[1])
    predict = jax.jit(partial(histosegnet.predict, config, network))
    found = predict(variables, jnp.asarray(batch["image"]))
    expected = torch.sigmoid(theirs(x)[0]).detach().numpy()
    np.testing.assert_allclose(found.presence, expected, **EXACT)
    maps = torch_x17.grad_cam(theirs, x).numpy()
    scale = np.abs(maps).max()
    np.testing.assert_allclose(found.activations / scale, maps / scale, **EXACT)
    assert maps.shape[2:] == tuple(side // 2 // 2 for side in batch["image"].shape[1:3])
