"""Run by `test_speed_fields.py`: stitches an image with a gate that has windows of its own.

    python -m tests.slides.gate_on_devices <out.npz>

Both programs are mapped over all devices; the networks are tiny and have random weights.
"""

import sys
import tempfile

import jax
import numpy as np
from flax import linen as nn

from configs import base
from data.synthetic import DATASET
from tests.slides.tiny_stitching import CLASSES, draw_noise, mark_everything, stitch_image
from wsss_jax.methods.gate import Gate
from wsss_jax.models.deeplab import DeepLabV3Plus
from wsss_jax.slides.mapping import networks
from wsss_jax.slides.mapping.tiling import Tiling
from wsss_jax.training.trained import Trained

WIDTH, HEIGHT, TILE = 150, 110, 32


class _ByColor(nn.Module):
    """Classifies an image by its mean color, with what phase 1 asks of its network."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        kernel = self.param(
            "fc8", lambda key: {"kernel": jax.random.normal(key, (1, 1, 3, CLASSES))}
        )
        return 9 * x.mean(axis=(1, 2)) @ kernel["kernel"][0, 0], {"bn7": x}


def main() -> None:
    configs = {"phase1": base.phase1(DATASET.name), "phase2": base.phase2("unused")}
    models = {
        "phase1": _ByColor(),
        "phase2": DeepLabV3Plus(CLASSES, width=1 / 16, blocks=(1, 1, 1, 1)),
    }
    loaded = {}
    for phase, model in models.items():
        init = jax.jit(
            lambda key, model=model: model.init(key, np.zeros((1, 32, 32, 3)), train=False)
        )
        loaded[phase] = Trained(configs[phase], DATASET, model, init(jax.random.key(3)))
    built = networks.build(loaded, Gate("probabilities", 0.5), is_shared=True)
    image = draw_noise(WIDTH // 10, HEIGHT // 10).repeat(10, axis=0).repeat(10, axis=1)
    tiling = Tiling(TILE, 12, batch_size=8, gate_stride=24)
    with tempfile.TemporaryDirectory() as folder:
        parts = stitch_image(
            folder, image, mark_everything(image), tiling, predict=None, gate=built.gate, rows=40
        )
        maps = [parts.read_probability(channel, 0, HEIGHT) for channel in range(CLASSES)]
        np.savez(sys.argv[1], labels=parts.read(0, HEIGHT), maps=maps, devices=jax.device_count())


if __name__ == "__main__":
    main()
