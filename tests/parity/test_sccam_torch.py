"""SC-CAM against PyTorch: both classifiers, loss, gradients, and maps of several scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import base_sccam
from tests.golden import reference
from wsss_jax import pixels
from wsss_jax.interop import torch_names
from wsss_jax.methods import sccam

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from wsss_jax.parity import torch_networks  # noqa: E402

CLASSES, PER_CLASS, WIDTH = 3, 4, 1 / 16


class _Sccam(torch.nn.Module):
    """ResNet38 of the comparison with a second classifier; dropout is left out."""

    def __init__(self):
        super().__init__()
        self.resnet = torch_networks.ResNet38(CLASSES, WIDTH)
        channels = self.resnet.fc8.in_channels
        self.sub = torch.nn.Conv2d(channels, CLASSES * PER_CLASS, 1, bias=False)

    def forward(self, x):
        logits, taps = self.resnet(x)
        pooled = taps["bn7"].mean(dim=(2, 3), keepdim=True)
        return logits, self.sub(pooled).flatten(1), taps["bn7"]


@pytest.fixture(scope="module")
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def both(float64):
    """The PyTorch network in float64, and configuration, network and variables with its weights."""
    theirs = _Sccam().double().eval()
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    weights = {
        name: torch.tensor(reference.tensor(name, shape)).double()
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }
    theirs.load_state_dict(weights, strict=False)
    config = base_sccam.train("", "tiny", 1)
    config.model.width, config.model.dropout_rates = WIDTH, (0.0, 0.0, 0.0)
    config.model.batch_norm, config.model.sub_categories = "frozen", PER_CLASS
    config.init, config.precision = "weights", "float64"
    for field in ("flip_horizontal", "color"):
        config.augment[field] = 0.0
    network = sccam.build_network(config, CLASSES)
    names = {name: name.removeprefix("resnet.") for name in weights}
    names["sub.weight"] = "fc8_sub.weight"
    state = {names[name]: value.numpy() for name, value in weights.items()}
    return theirs, config, network, torch_names.to_flax(state)


def _make_batch():
    rng = np.random.default_rng(1)
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 1]], np.uint8)
    clusters = np.where(labels, rng.integers(0, PER_CLASS, labels.shape), -1)
    sub = (clusters[:, :, None] == np.arange(PER_CLASS)).reshape(4, -1).astype(np.uint8)
    return {
        "image": rng.integers(0, 256, (4, 34, 45, 3), np.uint8),
        "label": labels,
        "sub_label": sub,
        "weight": np.array([1, 1, 1, 0], np.float32),  # the last only fills the batch
        "position": np.arange(4, dtype=np.int32),
    }


def _see(config, image):
    """What the PyTorch network sees: exactly what ours does, NCHW."""
    x = np.array(pixels.scale(jnp.asarray(image), config.model))
    return torch.from_numpy(x).double().permute(0, 3, 1, 2)


def _assert_close(found, expected, name=""):
    expected = np.asarray(expected)
    tolerance = 1e-9 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


def test_both_classifiers(both):
    theirs, config, network, variables = both
    batch = _make_batch()
    with torch.no_grad():
        logits, sub_logits, features = theirs(_see(config, batch["image"]))
    x = pixels.scale(jnp.asarray(batch["image"]), config.model)
    found, taps = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x)
    _assert_close(found, logits)
    _assert_close(taps["sub_logits"], sub_logits)
    pooled = sccam.pool_features(config, network, variables, jnp.asarray(batch["image"]))
    _assert_close(pooled, features.mean(dim=(2, 3)))


@pytest.mark.parametrize("sub_weight", [5.0, 0.5])
def test_loss_and_gradients_of_all_parameters(both, sub_weight):
    theirs, config, network, variables = both
    config = config.copy_and_resolve_references()
    config.sub_weight = sub_weight
    batch = _make_batch()
    real = batch["weight"] > 0
    theirs.zero_grad()
    logits, sub_logits, _ = theirs(_see(config, batch["image"][real]))
    labels, sub_labels = (torch.tensor(batch[n][real]).double() for n in ("label", "sub_label"))
    class_loss = F.multilabel_soft_margin_loss(logits, labels)
    sub_loss = F.multilabel_soft_margin_loss(sub_logits, sub_labels)
    (class_loss + sub_weight * sub_loss).backward()

    loss_function = sccam.make_loss(config, network)
    statistics = variables["batch_stats"]

    def compute(params):
        totals = {"patches": jnp.float32(real.sum())}
        given = {"params": params, "batch_stats": statistics}
        return loss_function(given, batch, totals, {}, jax.random.key(0))

    gradients, (_, metrics) = jax.jit(jax.grad(compute, has_aux=True))(variables["params"])
    for name, expected in (
        ("class_loss", class_loss),
        ("sub_loss", sub_loss),
        ("loss", class_loss + sub_weight * sub_loss),
    ):
        # Labels are float32 in the loss, exactly 0 and 1.
        _assert_close(metrics[name], expected.detach(), name)
    found = torch_names.to_torch({"params": gradients})
    expected = {name.removeprefix("resnet."): p.grad for name, p in theirs.named_parameters()}
    expected["fc8_sub.weight"] = expected.pop("sub.weight")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        _assert_close(found[name], gradient, name)
    assert len(flatten_dict(gradients)) == len(found)


def test_maps_of_scales_that_need_no_resized_image(both):
    """Maps of an image and of its mirror image, added up as in the released code."""
    theirs, config, network, variables = both
    config = config.copy_and_resolve_references()
    config.cam.scales = (1.0,)
    image = _make_batch()["image"]
    total = 0.0
    for is_mirrored in (False, True):
        seen = image[:, :, ::-1] if is_mirrored else image
        with torch.no_grad():
            _, _, features = theirs(_see(config, np.ascontiguousarray(seen)))
            low = F.relu(F.conv2d(features, theirs.resnet.fc8.weight))
            maps = F.interpolate(low, image.shape[1:3], mode="bilinear", align_corners=False)
        total = total + (maps.flip(3) if is_mirrored else maps)
    found = sccam.add_maps(config, network, variables, jnp.asarray(image))
    np.testing.assert_allclose(found, total, rtol=0, atol=1e-6 * total.max())
