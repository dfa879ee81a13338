"""The PyTorch networks and the arithmetic of their training."""

import numpy as np
import pytest

from tests.golden import reference
from wsss_jax.errors import InputError
from wsss_jax.parity import golden, judgment
from wsss_jax.parity.golden import MUS, STEPS

torch = pytest.importorskip("torch")

from wsss_jax.parity import torch_networks, torch_numbers  # noqa: E402

SIZE = (34, 45)  # not a multiple of any stride
CLASSES = 3
NARROW = {
    "phase1": lambda: torch_networks.ResNet38(CLASSES, width=1 / 16),
    "phase2": lambda: torch_networks.DeepLabV3Plus(CLASSES, width=1 / 16, blocks=(1, 1, 2, 1)),
}


def _weights(shapes):
    return {name: reference.tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _shapes(model):
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="module")
def narrow():
    """By phase: weights, images and inputs of a narrow network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    images[:, :10, :10] = 240
    inputs = {
        "labels": np.array([[1, 0, 1], [0, 1, 0]], np.float32),
        "targets": rng.integers(0, CLASSES + 1, (3, 2, *SIZE), dtype=np.uint8),
        "gate/probability": np.array([[0.05, 0.5, 0.5], [0.5, 0.5, 0.1]], np.float32),
    }
    return {phase: (_weights(_shapes(build())), images, inputs) for phase, build in NARROW.items()}


@pytest.fixture(scope="module")
def numbers(narrow):
    return {
        "phase1": torch_numbers.phase1(*narrow["phase1"]),
        "phase2": torch_numbers.phase2(*narrow["phase2"]),
    }


@pytest.mark.parametrize(
    ("phase", "network"),
    [("phase1", torch_networks.ResNet38), ("phase2", torch_networks.DeepLabV3Plus)],
)
def test_names_and_shapes_are_the_published_ones_in_their_order(phase, network):
    with torch.device("meta"):
        model = network(num_classes=4)
    assert list(_shapes(model).items()) == list(reference.shapes(phase).items())


@pytest.mark.parametrize("counters", [False, True])
def test_a_published_state_dict_loads_with_and_without_counters(narrow, counters):
    weights = {name: torch.tensor(array) for name, array in narrow["phase2"][0].items()}
    if counters:
        for name in [name for name in weights if name.endswith("running_var")]:
            weights[name.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
    model = NARROW["phase2"]()
    model.load_state_dict(weights, strict=True)
    assert model.backbone.bn1.num_batches_tracked == (7 if counters else 0)
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    torch_numbers.phase2(arrays, *narrow["phase2"][1:])


def test_golden_forward_and_attention_of_phase_1():
    model = torch_networks.ResNet38(num_classes=4)
    weights = reference.state_dict("phase1")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    x = torch.from_numpy(reference.images("phase1").transpose(0, 3, 1, 2) / np.float32(255))
    with torch.no_grad():
        logits, taps = model(x)
        attended_logits, attended = model(x, 0.9)
    computed = {"forward/logits": logits, "forward/bn7_relu": taps.pop("bn7")}
    computed |= {f"forward/{name}": tap for name, tap in taps.items()}
    computed |= {"pda/0.9/logits": attended_logits, "pda/0.9/attended": attended["attended"]}
    expected = golden.load(reference.path("phase1"), 1).tensors
    rows = judgment.compare(
        {name: expected[name] for name in computed},
        {name: tensor.numpy() for name, tensor in computed.items()},
        judgment.Judgment(1, "float32", "float32"),
    )
    assert len(rows) == 22 and {row.verdict for row in rows} == {"equal"}


def test_attention_by_hand():
    features = torch.full((1, 2, 1, 3), 2.0, requires_grad=True)
    maps = torch.tensor([[[[10.0, 5.0, -7.0]], [[1.0, 4.0, 2.0]]]], requires_grad=True)
    attended = torch_networks.progressive_dropout_attention(features, maps, 0.5)
    # 10 and 4 are above half of their maximum; 5 and 2 are not, -7 is clipped, and 4 divides.
    expected = 2 * np.array([1, 5, 2]) / 4
    np.testing.assert_array_equal(attended[0, 1, 0].detach(), expected)
    attended.sum().backward()
    np.testing.assert_array_equal(features.grad[0, 0, 0], expected / 2)
    np.testing.assert_array_equal(maps.grad[0, :, 0], [[0, 1, 0], [1, 0, 1]])


def test_the_fifth_logit_and_the_division_by_the_batch():
    logits = torch.zeros(2, 4, 1, 2)
    targets = torch.zeros(3, 2, 1, 2, dtype=torch.long)
    targets[0, :, :, 1] = 4  # white in the mask of bn7, class 0 in the others
    bn7, b5_2, b4_5 = torch_numbers.layer_losses(logits, targets)
    np.testing.assert_allclose(bn7, np.log(5) / 2 / 2, rtol=1e-6)
    np.testing.assert_allclose([b5_2, b4_5], (np.log(5) + 100) / 2 / 2, rtol=1e-6)


def test_phase_1_trains_what_the_published_code_trains():
    with torch.device("meta"):
        model = torch_networks.ResNet38(num_classes=4)
    groups = torch_numbers.make_phase1_optimizer(model).param_groups
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == list(reference.golden("phase1")["trainable"])
    assert [len(group["params"]) for group in groups] == [35, 0, 1, 0]
    assert groups[2]["params"][0] is model.fc8.weight
    assert [group["weight_decay"] for group in groups] == [5e-4, 0, 5e-4, 0]
    assert {group["momentum"] for group in groups} == {5e-4}


def test_phase_2_trains_everything_and_the_heads_ten_times_as_fast():
    model = NARROW["phase2"]()
    backbone, heads = torch_numbers.make_phase2_optimizer(model).param_groups
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    trained = [*backbone["params"], *heads["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
    assert {(group["momentum"], group["weight_decay"]) for group in (backbone, heads)} == {
        (0.9, 5e-4)
    }


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_learning_rates_are_the_recorded_ones(numbers, phase):
    rates = numbers[phase]["train/learning_rates"]
    recorded = reference.golden(phase)["train/learning_rates"]
    np.testing.assert_allclose(rates, recorded, rtol=1e-12)


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_first_step_is_the_gradient_and_the_decay_at_the_recorded_rate(narrow, monkeypatch, phase):
    monkeypatch.setattr(golden, "STEPS", 1)
    weights, images, inputs = narrow[phase]
    computed = getattr(torch_numbers, phase)(weights, images, inputs, "float64")
    name = {"phase1": "fc8.weight", "phase2": "decoder.last_conv.8.bias"}[phase]
    rate = {"phase1": 1e-3, "phase2": 1e-2}[phase]
    expected = weights[name] - rate * (computed[f"grad/{name}"] + 5e-4 * weights[name])
    np.testing.assert_allclose(computed[f"after3/{name}"], expected, rtol=1e-12)


def test_phase_1_leaves_frozen_parameters_alone(numbers, narrow):
    weights = narrow["phase1"][0]
    computed = numbers["phase1"]
    for name in ("conv1a.weight", "b2_2.conv_branch2a.weight", "bn7.weight", "b5.bn_branch2a.bias"):
        assert f"grad/{name}" not in computed
        np.testing.assert_array_equal(computed[f"after3/{name}"], weights[name])
    assert np.any(computed["after3/b3.conv_branch1.weight"] != weights["b3.conv_branch1.weight"])
    assert {f"pda/{mu}/attended" for mu in MUS} <= set(computed)
    assert computed["gradcam/b4_3/1"].shape == (CLASSES, *SIZE)
    assert (computed["pseudo_mask/luad/bn7/0"][:10, :10] == CLASSES).all()
    assert set(np.unique(computed["pseudo_mask/bcss/bn7/0"])) <= {0, 2}


def test_phase_2_keeps_one_row_a_step_and_the_statistics_of_the_first(numbers, narrow):
    weights, images, _ = narrow["phase2"]
    computed = numbers["phase2"]
    assert computed["train/loss_parts"].shape == (STEPS, 3)
    expected = computed["train/loss_parts"] @ [0.6, 0.2, 0.2]
    np.testing.assert_allclose(computed["train/losses"], expected, rtol=1e-6)
    name = "backbone.bn1.running_mean"
    x = torch.tensor(images).permute(0, 3, 1, 2) / 255
    first = torch.tensor(weights["backbone.conv1.weight"])
    mean = torch.nn.functional.conv2d(x, first, stride=2, padding=3).mean(dim=(0, 2, 3)).numpy()
    expected = 0.9 * weights[name] + 0.1 * mean
    np.testing.assert_allclose(computed[f"running/{name}"], expected, atol=1e-6)
    assert set(computed) >= {f"running/{name}" for name in weights if "running" in name}
    gated = computed["forward/logits"] * np.array([[0, 1, 1], [1, 1, 0]])[:, :, None, None]
    np.testing.assert_array_equal(computed["gate/prediction_reference"], gated.argmax(axis=1))


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_results_repeat_and_leave_the_weights_alone(numbers, narrow, phase):
    weights, images, inputs = narrow[phase]
    before = {name: array.copy() for name, array in weights.items()}
    again = getattr(torch_numbers, phase)(weights, images, inputs)
    assert list(again) == list(numbers[phase])
    for name, array in again.items():
        np.testing.assert_array_equal(array, numbers[phase][name], err_msg=name)
    for name, array in before.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)
    assert torch.backends.mkldnn.enabled


def test_float64_comes_close_to_float32(numbers, narrow):
    exact = torch_numbers.phase1(*narrow["phase1"], "float64")
    for name in ("forward/logits", "pda/0.65/logits", "gradcam/bn7/0", "grad/fc8.weight"):
        assert exact[name].dtype == np.float64
        np.testing.assert_allclose(
            numbers["phase1"][name], exact[name], atol=1e-4 * np.abs(exact[name]).max()
        )


def test_maps_of_phase_1_by_another_way(numbers, narrow):
    """At bn7 Grad-CAM is the plain map by the number of positions; no min-max moves an argmax."""
    computed = numbers["phase1"]
    plain = torch.nn.functional.conv2d(
        torch.tensor(computed["forward/bn7_relu"]), torch.tensor(narrow["phase1"][0]["fc8.weight"])
    )
    maps = torch.nn.functional.interpolate(plain, SIZE, mode="bilinear").numpy()
    present = torch.tensor(computed["forward/probability"])[:, :, None, None] > 0.25
    clipped = torch.nn.functional.interpolate(plain.relu() * present, SIZE, mode="bilinear").numpy()
    for index in (0, 1):
        expected = maps[index] / plain[0, 0].numel()
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(computed[f"gradcam/bn7/{index}"], expected, atol=tolerance)
        segmentation = computed[f"phase1_segmentation/{index}"]
        assert (segmentation != clipped[index].argmax(axis=0)).mean() <= 2e-3
        label = computed[f"phase1_segmentation_label/{index}"]
        np.testing.assert_array_equal(label, computed["forward/probability"][index] > 0.25)


def test_white_background_is_bright_large_and_4_connected():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:7, :7] = 201  # 49 pixels
    image[7:14, 7:14] = 255  # 49 more, touching at a corner only
    assert not torch_numbers.find_white_background(image).any()
    image[0, 7] = 201
    assert torch_numbers.find_white_background(image).sum() == 50
    image[image == 201] = 200
    assert not torch_numbers.find_white_background(image).any()


def test_what_does_not_fit_is_named(narrow):
    weights, images, inputs = narrow["phase1"]
    with pytest.raises(InputError, match=r"b3\.conv_branch1\.weight"):
        torch_numbers.phase1({**weights, "b3.conv_branch1.weight": np.zeros(3)}, images, inputs)
    with pytest.raises(InputError, match=r"fc8\.weight"):
        torch_numbers.phase1(narrow["phase2"][0], images, inputs)
    with pytest.raises(InputError, match="labels"):
        torch_numbers.phase1(weights, images[:1], inputs)
    with pytest.raises(InputError, match="images"):
        torch_numbers.phase2(narrow["phase2"][0], images[:1], inputs)
