"""The optimizers, with the parameter groups that both phases share."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import ml_collections
import optax

from wsss_jax.schedules import learning_rates


def make_optimizer(
    optimizer: ml_collections.ConfigDict, total_steps: int, head_modules: tuple[str, ...]
) -> optax.GradientTransformation:
    """Builds the optimizer, with the parameter groups of `schedules.learning_rates`.

    `optimizer.kind` is one of
      sgd: as PyTorch defines it, g <- g + weight_decay * p;  v <- momentum * v + g;
        p <- p - rate * v. With `optimizer.nesterov`, p <- p - rate * (g + momentum * v).
      adamw: Adam with decoupled weight decay (Loshchilov & Hutter 2019, Algorithm 2), as PyTorch
        defines it, p <- p - rate * (m / (sqrt(v) + epsilon) + weight_decay * p) with the moments m
        and v of `betas`, corrected for their start at 0.

    With `optimizer.clip_norm`, gradients are first scaled so that the norm of all of them together
    is not above it (Pascanu et al. 2013). They are those of the global batch when they come here.

    Weights decay, biases only with `optimizer.decay_biases`, and scales of BatchNorm unless
    `optimizer.decay_scales` is off.

    Args:
      optimizer: the fields `config.optimizer`.
      total_steps: length of the decay of the learning rate.
      head_modules: top-level modules of the parameter tree that are new layers.

    Raises:
      InputError: the run is not longer than the warm-up.
    """

    def labels(params: Mapping[str, Any]) -> Any:
        flat = flax.traverse_util.flatten_dict(params)
        return flax.traverse_util.unflatten_dict(
            {
                path: ("head_" if path[0] in head_modules else "")
                + ("bias" if path[-1] == "bias" else "weight")
                for path in flat
            }
        )

    def group(name: str, rate: optax.Schedule) -> optax.GradientTransformation:
        decays = optimizer.decay_biases or not name.endswith("bias")
        # Without a mask by default: earlier runs continue, whose state has no place for one.
        mask = None if optimizer.decay_scales else _is_no_scale
        decay = optax.add_decayed_weights(optimizer.weight_decay if decays else 0.0, mask)
        if optimizer.kind == "adamw":
            first, second = optimizer.betas
            parts = (optax.scale_by_adam(first, second, optimizer.epsilon), decay)
        else:
            parts = (decay, optax.trace(optimizer.momentum, optimizer.nesterov))
        return optax.chain(*parts, optax.scale_by_learning_rate(rate))

    rates = learning_rates(optimizer, total_steps)
    groups = optax.multi_transform(
        {name: group(name, rate) for name, rate in rates.items()}, labels
    )
    if not optimizer.clip_norm:
        return groups  # earlier runs continue: the state has no place for a clipping
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), groups)


def _is_no_scale(params: Any) -> Any:
    """Returns, in the tree of the parameters, whether each is something else than a scale."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)
