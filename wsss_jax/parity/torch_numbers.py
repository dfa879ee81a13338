"""Computes the numbers of a golden file in PyTorch on the CPU; needs the extra "torch".

Names and meaning as in `golden`; here every tensor is whole. Floats have the requested
dtype, label maps are uint8, losses and learning rates float64.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from wsss_jax.errors import InputError
from wsss_jax.parity import golden
from wsss_jax.parity.torch_networks import DeepLabV3Plus, ResNet38

_FROZEN_BLOCKS = ("conv1a", "b2", "b2_1", "b2_2")
_WEIGHT_DECAY = 5e-4
_MOMENTUM = {1: 5e-4, 2: 0.9}  # by phase
_POWER = 0.9  # of the polynomial decay
_SEGMENTATION_THRESHOLD = 0.25  # probability above which phase 1 as a segmentation keeps a class
_WHITE_GREY = 200  # grey value above which a pixel is bright
_WHITE_AREA = 50  # pixels a bright area needs to be background
_WHITE_SCORE = 1.000001  # just above every normalized map
_WHITE_LOGIT = 100.0
_LAYER_WEIGHTS = {"bn7": 0.6, "b5_2": 0.2, "b4_5": 0.2}
_GATE_THRESHOLD = 0.1
_COUNTER = "num_batches_tracked"

Arrays = dict[str, np.ndarray]


@contextmanager
def _disable_onednn() -> Iterator[None]:
    """Computes convolutions as matrix products instead of with oneDNN.

    oneDNN rounds three times as much, which flips a few ReLUs and shows as 2e-4 in Grad-CAM and in
    the gradients of phase 1, and its last bits depend on the number of threads.
    """
    before = torch.backends.mkldnn.enabled  # `mkldnn.flags` would warn of TF32
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@_disable_onednn()
def phase1(
    state_dict: Mapping[str, np.ndarray],
    images: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    dtype: str = "float32",
) -> Arrays:
    """Computes the numbers of phase 1; classes and width of the network follow from its weights.

    Args:
      state_dict: of `ResNet38`, with or without batch counters; not changed.
      images: (N, H, W, 3) uint8 RGB.
      inputs: `labels` (N, C), 1 where the patch contains the class, 0 elsewhere.
      dtype: "float32" or "float64".

    Raises:
      InputError: weights or labels do not fit.
    """
    num_classes, channels = _get_shape(state_dict, "fc8.weight")[:2]
    golden.check_inputs("config.golden", 1, inputs, images, num_classes)
    model = _load_network(
        ResNet38, state_dict, dtype, num_classes=num_classes, width=channels / 4096
    )
    x = _scale_images(images, dtype)
    numbers, cams = _classify(model, x)
    for layer, maps in cams.items():
        numbers |= {f"gradcam/{layer}/{index}": array for index, array in enumerate(maps)}
    for layer in golden.MASK_LAYERS:
        for index, (maps, label, image) in enumerate(zip(cams[layer], inputs["labels"], images)):
            scores = normalize(maps) * (label != 0)[:, None, None]
            white = np.where(find_white_background(image), _WHITE_SCORE, 0)[None]
            with_white = np.concatenate([scores, white])
            numbers[f"pseudo_mask/luad/{layer}/{index}"] = _label(with_white)
            numbers[f"pseudo_mask/bcss/{layer}/{index}"] = _label(scores)
    numbers |= _segment(numbers["forward/cam"], numbers["forward/probability"], images.shape[1:3])
    truth = torch.tensor(inputs["labels"], dtype=x.dtype)

    def compute_loss() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
        logits, _ = model(x, golden.MU)
        return logits, F.multilabel_soft_margin_loss(logits, truth), []

    return numbers | _train(1, model, make_phase1_optimizer(model.train()), compute_loss)


@_disable_onednn()
def phase2(
    state_dict: Mapping[str, np.ndarray],
    images: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    dtype: str = "float32",
) -> Arrays:
    """Computes the numbers of phase 2; classes, width and blocks follow from the weights.

    Args:
      state_dict: of `DeepLabV3Plus`, with or without batch counters; not changed.
      images: (N, H, W, 3) uint8 RGB, two or more.
      inputs: `targets` (3, N, H, W) uint8, class indices and C for white, and `gate/probability`
        (N, C).
      dtype: "float32" or "float64".

    Raises:
      InputError: weights, images or inputs do not fit.
    """
    if len(images) < 2:
        raise InputError("config.images: one image has no batch statistics; give two or more")
    (num_classes,) = _get_shape(state_dict, "decoder.last_conv.8.bias")
    width = _get_shape(state_dict, "backbone.layer4.0.conv2.weight")[0] / 512
    golden.check_inputs("config.golden", 2, inputs, images, num_classes)
    model = _load_network(
        DeepLabV3Plus,
        state_dict,
        dtype,
        num_classes=num_classes,
        width=width,
        blocks=_count_blocks(state_dict),
    )
    x = _scale_images(images, dtype)
    with torch.no_grad():
        logits, taps = model.eval()(x)
    numbers = {f"forward/{name}": _copy_array(tensor) for name, tensor in taps.items()}
    numbers["forward/logits"] = _copy_array(logits)
    numbers["forward/prediction"] = _label(_copy_array(logits), axis=1)
    is_open = (inputs["gate/probability"] > _GATE_THRESHOLD)[:, :, None, None]
    numbers["gate/prediction_reference"] = _label(_copy_array(logits) * is_open, axis=1)
    truth = torch.tensor(inputs["targets"], dtype=torch.long)
    weights = torch.tensor([_LAYER_WEIGHTS[layer] for layer in golden.TARGET_LAYERS], dtype=x.dtype)

    def compute_loss() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
        logits, _ = model(x)
        by_layer = layer_losses(logits, truth)
        return logits, (weights * by_layer).sum(), by_layer.tolist()

    return numbers | _train(2, model, make_phase2_optimizer(model.train()), compute_loss)


def normalize(maps: np.ndarray) -> np.ndarray:
    """Scales maps (C, H, W) to [0, 1] by their joint minimum and maximum; 0 if these are equal."""
    low, high = maps.min(), maps.max()
    return (maps - low) / ((high - low) or 1)


def find_white_background(image: np.ndarray) -> np.ndarray:
    """Finds bright areas, 4-connected and large, of an image (H, W, 3) uint8 RGB: (H, W) bool."""
    bright = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) > _WHITE_GREY
    _, areas = cv2.connectedComponents(bright.astype(np.uint8), connectivity=4)
    return bright & (np.bincount(areas.ravel())[areas] >= _WHITE_AREA)


def layer_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes the cross entropy with each mask, divided as in the released code.

    Args:
      logits: (N, C, H, W).
      targets: (3, N, H, W) int64 in the order of `golden.TARGET_LAYERS`, C where white.

    Returns:
      (3,): means over the pixels, white ones included, divided once more by N. White is a further
      class with logit 100 where the mask of bn7 is white and 0 elsewhere.
    """
    white = targets[golden.TARGET_LAYERS.index("bn7")] == logits.shape[1]
    further = _WHITE_LOGIT * white[:, None].to(logits.dtype)
    logits = torch.cat([logits, further], dim=1)
    return torch.stack([F.cross_entropy(logits, target) / len(logits) for target in targets])


def make_phase1_optimizer(model: ResNet38) -> torch.optim.SGD:
    """Makes the SGD of phase 1 and freezes all parameters of `model` it does not train.

    Its groups: weights, biases (twice the rate, no decay), fc8 and its biases (ten and twenty times
    the rate). No trained layer has a bias, so two of them are empty.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (head, bias): [] for head in (False, True) for bias in (False, True)
    }
    for name, module in model.named_modules():
        trained = isinstance(module, nn.Conv2d) and name.partition(".")[0] not in _FROZEN_BLOCKS
        for leaf, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(trained)
            if trained:
                groups[name == "fc8", leaf == "bias"].append(parameter)
    rate = golden.LEARNING_RATE[1]
    return torch.optim.SGD(
        [
            {
                "params": parameters,
                "lr": rate * (10 if head else 1) * (2 if bias else 1),
                "weight_decay": 0.0 if bias else _WEIGHT_DECAY,
            }
            for (head, bias), parameters in groups.items()
        ],
        momentum=_MOMENTUM[1],
    )


def make_phase2_optimizer(model: DeepLabV3Plus) -> torch.optim.SGD:
    """Makes the SGD of phase 2: the backbone, and the heads at ten times its rate."""
    rate = golden.LEARNING_RATE[2]
    heads = [*model.aspp.parameters(), *model.decoder.parameters()]
    return torch.optim.SGD(
        [
            {"params": list(model.backbone.parameters()), "lr": rate},
            {"params": heads, "lr": 10 * rate},
        ],
        momentum=_MOMENTUM[2],
        weight_decay=_WEIGHT_DECAY,
    )


def _classify(model: ResNet38, x: torch.Tensor) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Runs forward passes and Grad-CAM by layer, (N, C, H, W) at the size of the images."""
    logits, taps = model(x)
    cams = {
        layer: _copy_array(F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=False))
        for layer, maps in _grad_cam(
            logits, {layer: taps[layer] for layer in golden.CAM_LAYERS}
        ).items()
    }
    numbers = {
        "forward/" + {"bn7": "bn7_relu"}.get(name, name): _copy_array(tensor)
        for name, tensor in taps.items()
    }
    with torch.no_grad():
        numbers["forward/cam"] = _copy_array(F.relu(model.fc8(taps["bn7"])))
        numbers["forward/logits"] = _copy_array(logits)
        numbers["forward/probability"] = _copy_array(torch.sigmoid(logits))
        for mu in golden.MUS:
            logits, taps = model(x, mu)
            numbers[f"pda/{mu}/logits"] = _copy_array(logits)
            numbers[f"pda/{mu}/attended"] = _copy_array(taps["attended"])
    return numbers, cams


def _grad_cam(logits: torch.Tensor, taps: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights channels with the spatial mean of each logit's gradient; by layer (N, C, h, w)."""
    maps: dict[str, list[torch.Tensor]] = {layer: [] for layer in taps}
    for target in logits.sum(dim=0):
        gradients = torch.autograd.grad(target, list(taps.values()), retain_graph=True)
        for (layer, tap), gradient in zip(taps.items(), gradients):
            weights = gradient.mean(dim=(2, 3), keepdim=True)
            maps[layer].append((weights * tap).sum(dim=1))
    return {layer: torch.stack(per_class, dim=1) for layer, per_class in maps.items()}


def _segment(cams: np.ndarray, probability: np.ndarray, size: Sequence[int]) -> Arrays:
    """Segments with phase 1 alone, from activation maps (N, C, h, w) clipped at zero."""
    numbers = {}
    for index, (maps, predicted) in enumerate(zip(cams, probability > _SEGMENTATION_THRESHOLD)):
        present = torch.tensor(maps * predicted[:, None, None])[None]
        resized = F.interpolate(present, tuple(size), mode="bilinear", align_corners=False)[0]
        numbers[f"phase1_segmentation/{index}"] = _label(normalize(resized.numpy()))
        numbers[f"phase1_segmentation_label/{index}"] = predicted.astype(np.float32)
    return numbers


def _train(
    phase: int,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    compute_loss: Callable[[], tuple[torch.Tensor, torch.Tensor, list[float]]],
) -> Arrays:
    """Takes optimizer steps; `compute_loss` gives the logits, the loss and its parts."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 - step / golden.TOTAL_STEPS[phase]) ** _POWER
    )
    numbers: Arrays = {}
    losses, parts, rates = [], [], []
    for step in range(golden.STEPS):
        logits, loss, loss_parts = compute_loss()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            if phase == 2:
                numbers["train/logits"] = _copy_array(logits)
            numbers |= {
                f"grad/{name}": _copy_array(parameter.grad)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
            if phase == 2:  # in phase 1 they are frozen
                numbers |= {
                    f"running/{name}": _copy_array(buffer)
                    for name, buffer in model.named_buffers()
                    if not name.endswith(_COUNTER)
                }
        losses.append(loss.item())
        parts.append(loss_parts)
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    numbers["train/losses"] = np.array(losses)
    if phase == 2:
        numbers["train/loss_parts"] = np.array(parts)
    numbers["train/learning_rates"] = np.array(rates)
    return numbers | {f"after3/{name}": _copy_array(p) for name, p in model.named_parameters()}


def _label(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    return scores.argmax(axis=axis).astype(np.uint8)


def _copy_array(tensor: torch.Tensor) -> np.ndarray:
    """Copies a tensor, as training goes on to change parameters and buffers."""
    return tensor.detach().numpy().copy()


def _scale_images(images: np.ndarray, dtype: str) -> torch.Tensor:
    """Scales images to (N, 3, H, W) in [0, 1]; divides in float32 for any dtype."""
    scaled = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    return torch.tensor(scaled, dtype=getattr(torch, dtype))


def _load_network(
    network: type[nn.Module], state_dict: Mapping[str, np.ndarray], dtype: str, **kwargs
) -> nn.Module:
    # On the meta device no initial values are drawn, only to be replaced.
    with torch.device("meta"):
        model = network(**kwargs)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: np.shape(array) for name, array in state_dict.items()}
    for name in [*expected, *given]:
        if expected.get(name) != given.get(name) and not name.endswith(_COUNTER):
            raise InputError(
                f"config.weights: {name} is {given.get(name, 'missing')} and in {network.__name__} "
                f"{expected.get(name, 'missing')}; give weights of this phase"
            )
    tensors = {
        name: torch.tensor(array, dtype=getattr(torch, dtype))
        for name, array in state_dict.items()
        if not name.endswith(_COUNTER)
    }
    model.load_state_dict(tensors, assign=True)
    return model


def _count_blocks(state_dict: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Counts the blocks per stage of the backbone."""
    pattern = re.compile(r"backbone\.layer(\d)\.\d+\.conv1\.weight")
    counts = Counter(match[1] for match in map(pattern.fullmatch, state_dict) if match)
    return tuple(counts[stage] for stage in "1234")


def _get_shape(state_dict: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    if name not in state_dict:
        raise InputError(f"config.weights: {name} is missing; give weights of this phase")
    return np.shape(state_dict[name])
