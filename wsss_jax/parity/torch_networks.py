"""Both networks in PyTorch, a second implementation to compare with; needs the extra "torch".

Written from the description of the method and not from the JAX modules. Images and feature maps are
NCHW. State dicts have the names, shapes and order of the published ones. Dropout is left out:
numbers that depend on random draws cannot be compared. A plain dictionary loads with and without
`num_batches_tracked`, even with `strict=True`; PyTorch adds what is missing.
"""

import torch
from torch import nn
from torch.nn import functional as F

from wsss_jax.models.layers import widen

_ATTENTION_DIVISOR = 4  # of the released code, for any number of classes
_ASPP_DILATIONS = (1, 6, 12, 18)
_EXPANSION = 4
_MULTI_GRID = (2, 4, 8)  # dilations of the backbone's last stage


def progressive_dropout_attention(
    features: torch.Tensor, maps: torch.Tensor, mu: float
) -> torch.Tensor:
    """Multiplies features with the mean activation map without its peaks (Eq. 7-10).

    As in the released code: the maps are clipped at 0 first. Gradients flow through both factors,
    not through the threshold.

    Args:
      features: (N, D, h, w).
      maps: (N, C, h, w), the classifier applied to every position, of either sign.
      mu: entries above mu times the maximum of their class and image count as 0.

    Returns:
      (N, D, h, w). The sum over the classes is divided by 4 for any C.
    """
    maps = F.relu(maps)
    peaks = maps.amax(dim=(2, 3), keepdim=True)
    maps = maps.masked_fill(maps > mu * peaks, 0.0)
    return features * (maps.sum(dim=1, keepdim=True) / _ATTENTION_DIVISOR)


class ResNet38(nn.Module):
    """The patch classifier of phase 1; every BatchNorm always uses its running statistics.

    `width` multiplies every number of channels; 1 is the published network.
    """

    def __init__(self, num_classes: int, width: float = 1.0):
        super().__init__()
        channels = widen(64, width)
        self.conv1a = _conv(3, channels, 3)
        self._blocks: list[str] = []
        # Blocks, middle and outer channels, stride of the first block, its dilation, the others'.
        for stage, count, middle, out, stride, first_dilation, dilation in (
            ("b2", 3, 128, 128, 2, 1, 1),
            ("b3", 3, 256, 256, 2, 1, 1),
            ("b4", 6, 512, 512, 2, 1, 1),
            ("b5", 3, 512, 1024, 1, 1, 2),
        ):
            middle, out = widen(middle, width), widen(out, width)
            self._append(stage, _Basic(channels, middle, out, stride, first_dilation, dilation))
            for index in range(1, count):
                self._append(f"{stage}_{index}", _Basic(out, middle, out, 1, dilation, dilation))
            channels = out
        for name, out in (("b6", 2048), ("b7", 4096)):
            quarter, half, out = (widen(out // n, width) for n in (4, 2, 1))
            self._append(name, _Bottleneck(channels, quarter, half, out))
            channels = out
        self.bn7 = _FrozenBatchNorm(channels)
        self.fc8 = nn.Conv2d(channels, num_classes, 1, bias=False)

    def _append(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self._blocks.append(name)

    def forward(
        self, x: torch.Tensor, mu: float | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Classifies patches.

        Args:
          x: (N, 3, H, W) images in [0, 1].
          mu: coefficient of the Progressive Dropout Attention; None leaves it out.

        Returns:
          Logits (N, C), and the feature maps "conv1a", the blocks "b2" ... "b7" (sums before the
          next normalization), "bn7" after its ReLU and, with mu, "attended".
        """
        taps = {"conv1a": self.conv1a(x)}
        x = taps["conv1a"]
        for name in self._blocks:
            x = taps[name] = getattr(self, name)(x)
        x = taps["bn7"] = F.relu(self.bn7(x))
        if mu is not None:
            x = taps["attended"] = progressive_dropout_attention(x, self.fc8(x), mu)
        return self.fc8(F.adaptive_avg_pool2d(x, 1)).flatten(1), taps


class _FrozenBatchNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class _Basic(nn.Module):
    """Two 3x3 convolutions, each after normalization and ReLU."""

    def __init__(
        self, channels: int, middle: int, out: int, stride: int, first_dilation: int, dilation: int
    ):
        super().__init__()
        self.bn_branch2a = _FrozenBatchNorm(channels)
        self.conv_branch2a = _conv(channels, middle, 3, stride, first_dilation)
        self.bn_branch2b1 = _FrozenBatchNorm(middle)
        self.conv_branch2b1 = _conv(middle, out, 3, dilation=dilation)
        same_shape = stride == 1 and channels == out
        self.conv_branch1 = None if same_shape else _conv(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(y)
        y = F.relu(self.bn_branch2b1(self.conv_branch2a(y)))
        return shortcut + self.conv_branch2b1(y)


class _Bottleneck(nn.Module):
    """1x1, 3x3 (dilation 4) and 1x1 convolutions, each after normalization and ReLU."""

    def __init__(self, channels: int, quarter: int, half: int, out: int):
        super().__init__()
        self.bn_branch2a = _FrozenBatchNorm(channels)
        self.conv_branch2a = _conv(channels, quarter, 1)
        self.bn_branch2b1 = _FrozenBatchNorm(quarter)
        self.conv_branch2b1 = _conv(quarter, half, 3, dilation=4)
        self.bn_branch2b2 = _FrozenBatchNorm(half)
        self.conv_branch2b2 = _conv(half, out, 1)
        self.conv_branch1 = _conv(channels, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(y)
        y = F.relu(self.bn_branch2b1(self.conv_branch2a(y)))
        y = F.relu(self.bn_branch2b2(self.conv_branch2b1(y)))
        return shortcut + self.conv_branch2b2(y)


class DeepLabV3Plus(nn.Module):
    """The segmentation network of phase 2, on a ResNet-101, output stride 16.

    `width` multiplies every number of channels; 1 is the published network. `blocks` are the
    bottleneck blocks in each stage of the backbone.
    """

    def __init__(
        self,
        num_classes: int,
        width: float = 1.0,
        blocks: tuple[int, int, int, int] = (3, 4, 23, 3),
    ):
        super().__init__()
        self.backbone = _Backbone(width, blocks)
        low_level = widen(64, width) * _EXPANSION
        self.aspp = _Aspp(widen(512, width) * _EXPANSION, widen(256, width))
        self.decoder = _Decoder(low_level, widen(48, width), widen(256, width), num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Segments images.

        Args:
          x: (N, 3, H, W) images in [0, 1].

        Returns:
          Logits (N, C, H, W), and the feature maps "backbone" (stride 16), "low_level" (stride 4),
          "aspp" (stride 16) and "decoder" (the logits at stride 4).
        """
        features, low_level = self.backbone(x)
        pyramid = self.aspp(features)
        coarse = self.decoder(pyramid, low_level)
        taps = {"backbone": features, "low_level": low_level, "aspp": pyramid, "decoder": coarse}
        return _resize(coarse, x), taps


class _Backbone(nn.Module):
    def __init__(self, width: float, blocks: tuple[int, int, int, int]):
        super().__init__()
        channels = widen(64, width)
        self.conv1 = _conv(3, channels, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(channels)
        for stage, (count, stride) in enumerate(zip(blocks, (1, 2, 2, 1))):
            planes = widen(64 * 2**stage, width)
            layer = []
            for index in range(count):
                dilation = _MULTI_GRID[index % 3] if stage == 3 else 1
                layer.append(_ResidualBlock(channels, planes, 1 if index else stride, dilation))
                channels = planes * _EXPANSION
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        low_level = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        return self.layer4(self.layer3(self.layer2(low_level))), low_level


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int, dilation: int):
        super().__init__()
        out = planes * _EXPANSION
        self.conv1 = _conv(channels, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride, dilation)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling: four dilations and the image's mean, side by side."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        for index, dilation in enumerate(_ASPP_DILATIONS, start=1):
            self.add_module(f"aspp{index}", _AsppBranch(channels, out, dilation))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), _conv(channels, out, 1), nn.BatchNorm2d(out), nn.ReLU()
        )
        self.conv1 = _conv(5 * out, out, 1)
        self.bn1 = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = [branch(x) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        branches.append(_resize(self.global_avg_pool(x), x))
        return F.relu(self.bn1(self.conv1(torch.cat(branches, dim=1))))


class _AsppBranch(nn.Module):
    def __init__(self, channels: int, out: int, dilation: int):
        super().__init__()
        self.atrous_conv = _conv(channels, out, 1 if dilation == 1 else 3, dilation=dilation)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class _Decoder(nn.Module):
    def __init__(self, low_level: int, reduced: int, out: int, num_classes: int):
        super().__init__()
        self.conv1 = _conv(low_level, reduced, 1)
        self.bn1 = nn.BatchNorm2d(reduced)
        # The identities stand where the published sequence has its dropout.
        self.last_conv = nn.Sequential(
            _conv(out + reduced, out, 3),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Identity(),
            _conv(out, out, 3),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Identity(),
            nn.Conv2d(out, num_classes, 1),
        )

    def forward(self, x: torch.Tensor, low_level: torch.Tensor) -> torch.Tensor:
        low_level = F.relu(self.bn1(self.conv1(low_level)))
        return self.last_conv(torch.cat([_resize(x, low_level), low_level], dim=1))


def _conv(channels: int, out: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution without bias that, at stride 1, keeps the size of its input."""
    padding = dilation * (size - 1) // 2
    return nn.Conv2d(channels, out, size, stride, padding, dilation, bias=False)


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
