"""X1.7, the patch classifier of HistoSegNet (Chan et al. 2019): the first three blocks of VGG16.

Each 3x3 convolution (with bias) is followed by ReLU, BatchNorm and, but for the last of a block,
dropout; each block ends with 2x2 max pooling. Then the maximum of each channel and a linear
classifier. At width 1 it has 1.74 M parameters. Convolutions have the names of torchvision's VGG16,
such as `features.0`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name

from wsss_jax.models.layers import BLOCK_OUTPUT, Conv, Layers, accumulator, widen
from wsss_jax.models.lowering import Lowering

CAM_LAYER = "relu3_3"  # the last ReLU, before its BatchNorm
MOST_STRIDE = 8  # pixels of the image to one that is pooled, after the last block
_BLOCKS = ((64, 2), (128, 2), (256, 3))  # channels, convolutions


class X17(nn.Module):
    """Patch classifier with taps for Grad-CAM; BatchNorm has the statistics of the batch.

    Attributes:
      num_classes: C, the tissue classes.
      width: factor on every channel count (1.0 is the published network).
      pooling: of each channel over the whole image, "maximum" or "mean".
      dropout_rates: after the convolutions that another one of their block follows.
      dtype: compute dtype; parameters and logits are float32.
      axis_name: mapped axis over which batch statistics see one global batch.
      lowering: of the convolutions.
    """

    num_classes: int
    width: float = 1.0
    pooling: str = "maximum"
    dropout_rates: tuple[float, float, float, float] = (0.3, 0.4, 0.4, 0.4)
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
        """Classifies patches.

        Args:
          x: (B, H, W, 3) scaled images of at least `MOST_STRIDE` pixels in height and width.
          train: dropout on, which needs the rng "dropout", and batch statistics.
          weight: (B,), 0 for examples that only fill the batch, else 1; None means all 1.
          position: (B,) places in the global batch, see `Dropout`; None means 0 ... B - 1.

        Returns:
          Logits (B, C) float32, and the feature maps "relu1_1" ... "relu3_3" (block and convolution
          from 1), each before its BatchNorm; the last is (B, H // 4, W // 4, 256 * width).
        """
        layers = Layers(train, train, weight, position, self.dtype, self.axis_name, self.lowering)
        taps: dict[str, jax.Array] = {}

        def tap(name: str, value: jax.Array) -> jax.Array:
            # There is a perturbation only in derivatives with respect to the tap, as in Grad-CAM.
            if self.has_variable("perturbations", name):
                value = self.perturb(name, value)
            taps[name] = checkpoint_name(value, BLOCK_OUTPUT)
            return taps[name]

        rates = iter(self.dropout_rates)
        index = 0  # in VGG16's sequence of convolutions, ReLUs and poolings
        for block, (channels, convolutions) in enumerate(_BLOCKS, 1):
            for number in range(1, convolutions + 1):
                name = f"features_{index}"
                arithmetic = {"dtype": self.dtype, "lowering": self.lowering}
                conv = Conv(widen(channels, self.width), use_bias=True, **arithmetic, name=name)
                x = tap(f"relu{block}_{number}", nn.relu(conv(x)))
                x = layers.norm(x, f"bn{block}_{number}")
                if number < convolutions:
                    x = layers.dropout(x, f"dropout{block}_{number}", next(rates))
                index += 2
            x = _pool(x)
            index += 1
        x = x.astype(accumulator(x.dtype))
        pooled = x.max(axis=(1, 2)) if self.pooling == "maximum" else x.mean(axis=(1, 2))
        arithmetic = {"dtype": x.dtype, "lowering": self.lowering}
        classifier = Conv(self.num_classes, 1, use_bias=True, **arithmetic, name="fc")
        return classifier(pooled[:, None, None, :])[:, 0, 0], taps


def _pool(x: jax.Array) -> jax.Array:
    """Takes maxima of 2 x 2 pixels; an odd last row or column has no part in them.

    By reshaping, whose gradient takes a fraction of the time of XLA's windows on CPUs.
    """
    batch, height, width, depth = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    return x.reshape(batch, height, 2, width, 2, depth).max(axis=(2, 4))
