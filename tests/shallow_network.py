"""A classifier that compiles in a second, with what SC-CAM asks of its network."""

import flax.linen as nn
import jax.numpy as jnp

from wsss_jax.methods import sccam
from wsss_jax.models.layers import BatchNorm, Conv, Dropout


class _ClassWeights(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, features):
        initializer = nn.initializers.xavier_uniform()
        return self.param("kernel", initializer, (1, 1, features, self.classes))[0, 0]


class Shallow(nn.Module):
    """Two convolutions instead of 38; the rest as `ResNet38`."""

    num_classes: int
    sub_classes: int = 0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train, weight=None, position=None):
        x = Conv(6, stride=4, name="conv1a")(x)
        if self.has_variable("perturbations", "b4_3"):
            x = self.perturb("b4_3", x)
        taps = {"b4_3": x}
        norm = BatchNorm(axis_name=self.axis_name, name="bn6")
        x = nn.relu(norm(x, use_running_average=not train, weight=weight))
        x = nn.relu(Conv(8, stride=2, name="last")(x))
        if self.has_variable("perturbations", "bn7"):
            x = self.perturb("bn7", x)
        taps["bn7"] = x
        dropout = Dropout(0.5, channels=True, name="dropout")
        x = dropout(x, deterministic=not train, position=position)
        pooled = x.mean(axis=(1, 2), dtype=jnp.float32)
        if self.sub_classes:
            taps["sub_logits"] = pooled @ _ClassWeights(self.sub_classes, name="fc8_sub")(8)
        return pooled @ _ClassWeights(self.num_classes, name="fc8")(8), taps


def build_network(config, num_classes, axis_name=None):
    """Stands in for `sccam.build_network`, with as many sub-categories."""
    return Shallow(num_classes, num_classes * config.model.sub_categories, axis_name)


def replace_network(monkeypatch):
    """Lets SC-CAM train this network instead of ResNet38; the rest is what it does."""
    monkeypatch.setattr(sccam, "build_network", build_network)
