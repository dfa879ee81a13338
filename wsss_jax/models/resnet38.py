"""ResNet38, the patch classifier of phase 1 and of SC-CAM.

The wide residual network "A1" of Wu et al. 2016 as Ahn & Kwak 2018 use it: pre-activation blocks,
stride 8, dilated from b5 on, global average pooling and a linear classifier without bias. At width
1 it has 105.09 M parameters. Module names are those of the released PyTorch checkpoints.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from wsss_jax.models.attention import find_peaks, progressive_dropout_attention
from wsss_jax.models.layers import BLOCK_OUTPUT, Layers, accumulator, widen
from wsss_jax.models.lowering import Lowering


class _Stage(NamedTuple):
    """Blocks `name`, `name_1`, ...; `stride` and `first_dilation` are of the first block."""

    name: str
    blocks: int
    middle: int
    out: int
    stride: int
    first_dilation: int
    dilation: int


_STAGES = (
    _Stage("b2", 3, middle=128, out=128, stride=2, first_dilation=1, dilation=1),
    _Stage("b3", 3, middle=256, out=256, stride=2, first_dilation=1, dilation=1),
    _Stage("b4", 6, middle=512, out=512, stride=2, first_dilation=1, dilation=1),
    _Stage("b5", 3, middle=512, out=1024, stride=1, first_dilation=1, dilation=2),
)


class ResNet38(nn.Module):
    """Patch classifier with taps for class activation maps.

    Attributes:
      num_classes: C, the tissue classes.
      width: factor on every channel count (1.0 is the published network).
      frozen_batch_norm: use the running statistics in training too.
      dropout_rates: channel dropout in b6, in b7 and before pooling.
      attention_relu: see `progressive_dropout_attention`.
      attention_divisor: see there; 0 means the number of classes.
      attention_normalize: see there.
      sub_classes: outputs of a second classifier on the same features, "fc8_sub"; 0 has none.
      head_initializer: draws the weights of the classifiers.
      dtype: compute dtype; parameters and logits are float32.
      axis_name: mapped axis over which batch statistics see one global batch.
      lowering: of the convolutions.
    """

    # Convolutions and the normalizations right after them, for `folding`; others follow a sum.
    FOLDED: ClassVar[Mapping[str, str]] = {
        "conv_branch2a": "bn_branch2b1",
        "conv_branch2b1": "bn_branch2b2",
    }

    num_classes: int
    width: float = 1.0
    frozen_batch_norm: bool = True
    dropout_rates: tuple[float, float, float] = (0.3, 0.5, 0.5)
    attention_relu: bool = False
    attention_divisor: int = 0
    attention_normalize: bool = False
    sub_classes: int = 0
    head_initializer: Initializer = nn.initializers.he_normal()
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    lowering: Lowering = Lowering()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        mu: jax.Array | None = None,
        attention_share: jax.Array | None = None,
        weight: jax.Array | None = None,
        position: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies patches.

        Args:
          x: (B, H, W, 3) scaled images.
          train: dropout on, and batch statistics unless `frozen_batch_norm`. Needs the rng
            "dropout" where a rate is above 0.
          mu: scalar coefficient of the Progressive Dropout Attention; 0 switches it off without
            another compilation, None leaves it out of the program.
          attention_share: scalar, see `progressive_dropout_attention`; None means all of it.
          weight: (B,), 0 for examples that only fill the batch, else 1; None means all 1.
          position: (B,) places in the global batch, see `Dropout`; None means 0 ... B - 1.

        Returns:
          Logits (B, C) float32, and the named feature maps: "conv1a", the blocks "b2" ... "b7"
          (sums before the next normalization), "bn7" after its ReLU and, when mu is given,
          "attended" (B, H/8, W/8, 4096 * width) and "peaks" (B, C), see `find_peaks`. With
          `sub_classes` there are the logits of the second classifier beside them, "sub_logits"
          (B, sub_classes) float32.
        """
        batch_statistics = train and not self.frozen_batch_norm
        layers = Layers(
            train, batch_statistics, weight, position, self.dtype, self.axis_name, self.lowering
        )
        drop_b6, drop_b7, drop_pool = self.dropout_rates
        taps = {}

        def tap(name: str, value: jax.Array) -> jax.Array:
            # There is a perturbation only in derivatives with respect to the tap, as in Grad-CAM.
            if self.has_variable("perturbations", name):
                value = self.perturb(name, value)
            taps[name] = checkpoint_name(value, BLOCK_OUTPUT)
            return taps[name]

        x = tap("conv1a", layers.conv(x, "conv1a", widen(64, self.width)))
        for stage in _STAGES:
            for index in range(stage.blocks):
                name = f"{stage.name}_{index}" if index else stage.name
                block = _BasicBlock(
                    middle=widen(stage.middle, self.width),
                    out=widen(stage.out, self.width),
                    stride=1 if index else stage.stride,
                    first_dilation=stage.dilation if index else stage.first_dilation,
                    dilation=stage.dilation,
                    name=name,
                )
                x = tap(name, block(x, layers))
        for name, out, rate in (("b6", 2048, drop_b6), ("b7", 4096, drop_b7)):
            x = tap(name, _BottleneckBlock(out, self.width, rate, name=name)(x, layers))
        x = tap("bn7", nn.relu(layers.norm(x, "bn7")))

        class_weights = _ClassWeights(self.num_classes, self.head_initializer, name="fc8")(
            x.shape[-1]
        )
        if mu is not None:
            attended = progressive_dropout_attention(
                x,
                class_weights,
                mu,
                relu=self.attention_relu,
                divisor=self.attention_divisor or self.num_classes,
                normalize=self.attention_normalize,
                share=attention_share,
            )
            taps["peaks"] = find_peaks(x, class_weights)  # no tap: the loss alone reads it
            x = tap("attended", jnp.where(mu > 0, attended, x))
        x = layers.dropout(x, "dropout", drop_pool, channels=True)
        pooled = x.mean(axis=(1, 2), dtype=accumulator(x.dtype))
        if self.sub_classes:
            sub_weights = _ClassWeights(self.sub_classes, self.head_initializer, name="fc8_sub")
            taps["sub_logits"] = jnp.dot(
                pooled, sub_weights(x.shape[-1]), precision=lax.Precision.HIGHEST
            )
        return jnp.dot(pooled, class_weights, precision=lax.Precision.HIGHEST), taps


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions, each after normalization and ReLU."""

    middle: int
    out: int
    stride: int
    first_dilation: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
        conv, norm = layers.conv, layers.norm
        y = nn.relu(norm(x, "bn_branch2a"))
        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.out:
            shortcut = conv(y, "conv_branch1", self.out, 1, self.stride)
        y = conv(y, "conv_branch2a", self.middle, 3, self.stride, self.first_dilation)
        y = nn.relu(norm(y, "bn_branch2b1"))
        return shortcut + conv(y, "conv_branch2b1", self.out, dilation=self.dilation)


class _BottleneckBlock(nn.Module):
    """1x1, 3x3 (dilation 4), 1x1 with channel dropout before the second and the third."""

    out: int
    width: float
    dropout_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
        conv, norm = layers.conv, layers.norm
        quarter, half, out = (widen(self.out // n, self.width) for n in (4, 2, 1))

        y = nn.relu(norm(x, "bn_branch2a"))
        shortcut = conv(y, "conv_branch1", out, 1)
        y = nn.relu(norm(conv(y, "conv_branch2a", quarter, 1), "bn_branch2b1"))
        y = layers.dropout(y, "dropout_2b1", self.dropout_rate, channels=True)
        y = nn.relu(norm(conv(y, "conv_branch2b1", half, dilation=4), "bn_branch2b2"))
        y = layers.dropout(y, "dropout_2b2", self.dropout_rate, channels=True)
        return shortcut + conv(y, "conv_branch2b2", out, 1)


class _ClassWeights(nn.Module):
    """Weights of the classifier, which the attention needs before the classifier runs."""

    num_classes: int
    initializer: Initializer

    @nn.compact
    def __call__(self, features: int) -> jax.Array:
        """Returns (features, C) float32."""
        shape = (1, 1, features, self.num_classes)
        return self.param("kernel", self.initializer, shape)[0, 0]
