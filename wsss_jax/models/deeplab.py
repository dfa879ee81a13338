"""DeepLabV3+ on a ResNet-101, the segmentation network of phase 2 (Chen et al. 2018).

Output stride 16, multi-grid dilations in the last stage, every interpolation with aligned corners.
At width 1 with four classes it has 59.34 M parameters. Module names follow the released PyTorch
checkpoints: top-level "backbone", "aspp", "decoder".
"""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from wsss_jax.models.layers import (
    BLOCK_OUTPUT,
    Conv,
    Layers,
    accumulator,
    resize_align_corners,
    widen,
)
from wsss_jax.models.lowering import Lowering
from wsss_jax.models.materialize import materialize

_EXPANSION = 4
_STRIDES = (1, 2, 2, 1)
_MULTI_GRID = (2, 4, 8)  # dilations of the last stage: (1, 2, 4) times 2
_ASPP_DILATIONS = (1, 6, 12, 18)


class DeepLabV3Plus(nn.Module):
    """Semantic segmentation of images of any size.

    Attributes:
      num_classes: C, the tissue classes.
      width: factor on every channel count (1.0 is the published network).
      blocks: bottleneck blocks per stage of the backbone; (3, 4, 23, 3) is ResNet-101.
      dropout_rates: element-wise dropout after the pyramid and after both decoder convolutions.
      dtype: compute dtype; parameters and logits are float32.
      axis_name: mapped axis over which batch statistics see one global batch.
      lowering: of the convolutions.
    """

    # Convolutions and the normalizations right after them, for `folding`: all that there are.
    FOLDED: ClassVar[Mapping[str, str]] = {
        **{f"conv{number}": f"bn{number}" for number in (1, 2, 3)},
        "downsample_0": "downsample_1",
        "atrous_conv": "bn",
        "global_avg_pool_1": "global_avg_pool_2",
        "last_conv_0": "last_conv_1",
        "last_conv_4": "last_conv_5",
    }

    num_classes: int
    width: float = 1.0
    blocks: tuple[int, int, int, int] = (3, 4, 23, 3)
    dropout_rates: tuple[float, float, float] = (0.5, 0.5, 0.1)
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    lowering: Lowering = Lowering()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        weight: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Segments images.

        Args:
          x: (B, H, W, 3) scaled images.
          train: dropout and batch statistics on. Needs the rng "dropout" where a rate is above 0.
          weight: (B,), 0 for examples that only fill the batch, else 1; None means all 1.
          position: (B,) places in the global batch, see `Dropout`; None means 0 ... B - 1.

        Returns:
          Logits (B, H, W, C) float32, and the feature maps "backbone" (stride 16), "low_level"
          (stride 4), "aspp" (stride 16) and "decoder" (the logits at stride 4).
        """
        size = x.shape[1:3]
        layers = Layers(train, train, weight, position, self.dtype, self.axis_name, self.lowering)
        high_level, low_level = _Backbone(self.blocks, self.width, name="backbone")(x, layers)
        pyramid = _Aspp(self.dropout_rates[0], self.width, name="aspp")(high_level, layers)
        decoder = _Decoder(self.num_classes, self.dropout_rates[1:], self.width, name="decoder")
        coarse = decoder(pyramid, low_level, layers)
        taps = {"backbone": high_level, "low_level": low_level, "aspp": pyramid, "decoder": coarse}
        return resize_align_corners(coarse.astype(accumulator(coarse.dtype)), size), taps


class _Backbone(nn.Module):
    blocks: tuple[int, int, int, int]
    width: float

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> tuple[jax.Array, jax.Array]:
        x = layers.conv(x, "conv1", widen(64, self.width), 7, stride=2)
        x = nn.relu(layers.norm(x, "bn1"))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                last = stage == len(self.blocks) - 1
                block = _Bottleneck(
                    planes=widen(64 * 2**stage, self.width),
                    stride=1 if index else _STRIDES[stage],
                    dilation=_MULTI_GRID[index % len(_MULTI_GRID)] if last else 1,
                    name=f"layer{stage + 1}_{index}",
                )
                x = checkpoint_name(materialize(block(x, layers)), BLOCK_OUTPUT)
            if stage == 0:
                low_level = x
        return x, low_level


class _Bottleneck(nn.Module):
    planes: int
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
        conv, norm = layers.conv, layers.norm
        out = self.planes * _EXPANSION
        y = nn.relu(norm(conv(x, "conv1", self.planes, 1), "bn1"))
        y = nn.relu(norm(conv(y, "conv2", self.planes, 3, self.stride, self.dilation), "bn2"))
        y = norm(conv(y, "conv3", out, 1), "bn3")
        if self.stride != 1 or x.shape[-1] != out:
            x = norm(conv(x, "downsample_0", out, 1, self.stride), "downsample_1")
        return nn.relu(x + y)


class _Aspp(nn.Module):
    """Atrous spatial pyramid pooling: four dilations and the mean of the image, in parallel."""

    dropout_rate: float
    width: float

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
        features = widen(256, self.width)
        branches = []
        for index, dilation in enumerate(_ASPP_DILATIONS, start=1):
            branch = _AsppBranch(features, dilation, name=f"aspp{index}")
            branches.append(branch(x, layers))
        pooled = x.mean(axis=(1, 2), keepdims=True, dtype=accumulator(x.dtype))
        pooled = layers.conv(pooled, "global_avg_pool_1", features, 1)
        pooled = nn.relu(layers.norm(pooled, "global_avg_pool_2"))
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = layers.conv(jnp.concatenate(branches, axis=-1), "conv1", features, 1)
        y = nn.relu(layers.norm(y, "bn1"))
        return layers.dropout(y, "dropout", self.dropout_rate)


class _AsppBranch(nn.Module):
    features: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
        kernel_size = 1 if self.dilation == 1 else 3
        x = layers.conv(x, "atrous_conv", self.features, kernel_size, dilation=self.dilation)
        return nn.relu(layers.norm(x, "bn"))


class _Decoder(nn.Module):
    num_classes: int
    dropout_rates: tuple[float, float]
    width: float

    @nn.compact
    def __call__(self, x: jax.Array, low_level: jax.Array, layers: Layers) -> jax.Array:
        features = widen(256, self.width)
        low_level = layers.conv(low_level, "conv1", widen(48, self.width), 1)
        low_level = nn.relu(layers.norm(low_level, "bn1"))
        x = resize_align_corners(x, low_level.shape[1:3])
        x = jnp.concatenate([x, low_level], axis=-1)
        # Places in the sequence of the released checkpoint: convolutions 0 and 4, norms 1 and 5.
        for place, rate in zip((0, 4), self.dropout_rates, strict=True):
            x = layers.conv(x, f"last_conv_{place}", features)
            x = nn.relu(layers.norm(x, f"last_conv_{place + 1}"))
            x = layers.dropout(x, f"last_conv_{place + 3}", rate)
        classifier = Conv(
            self.num_classes,
            1,
            use_bias=True,
            dtype=layers.dtype,
            lowering=layers.lowering,
            name="last_conv_8",
        )
        return classifier(x)
