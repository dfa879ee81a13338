"""A method that only the tests register: one convolution, trained on labels, gives pixel logits."""

import flax.linen as nn
import jax.numpy as jnp
import optax

from wsss_jax import config_rules as rules
from wsss_jax import pixels, schedules
from wsss_jax.methods.losses import multilabel_soft_margin
from wsss_jax.methods.prediction import Prediction
from wsss_jax.training.task import Task

TITLE = "toy"
GIVES = frozenset({"logits"})
FIELDS = {**rules.DATA, **rules.TRAINING, "kernel": rules.integer(1, 9)}


class _Network(nn.Module):
    num_classes: int
    kernel: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Conv(self.num_classes, (self.kernel, self.kernel), name="head")(x)


def complete(config, dataset):
    if config.precision != "float32":
        config.precision = "float32"


def build_network(config, num_classes, axis_name=None):
    return _Network(num_classes, config.kernel)


def make_task(config, num_classes, total_steps):
    network = build_network(config, num_classes)

    def loss(variables, batch, totals, values, rng):
        logits = network.apply(variables, pixels.scale(batch["image"], config.model), train=True)
        losses = multilabel_soft_margin(logits.mean(axis=(1, 2)), batch["label"].astype(float))
        mean = (losses * batch["weight"]).sum() / totals["patches"]
        return mean, (variables.get("batch_stats", {}), {"loss": mean})

    return Task(
        network=network,
        totals=lambda batch: {"patches": batch["weight"].sum()},
        loss=loss,
        metrics=("loss",),
        values=lambda epoch, step: {},
        optimizer=optax.sgd(config.optimizer.learning_rate),
        learning_rate=schedules.polynomial(config.optimizer.learning_rate, total_steps, 0.0),
        is_trained=lambda path: True,
    )


def predict(config, network, variables, image):
    logits = network.apply(variables, pixels.scale(image, config.model), train=False)
    return Prediction(logits.argmax(axis=-1).astype(jnp.uint8), logits=logits)
