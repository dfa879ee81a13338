"""The classification gate (Eq. 14): phase 1 closes classes that it does not see in a patch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from wsss_jax.errors import InputError


class Gate(NamedTuple):
    """How classes are closed.

    Attributes:
      mode: "probabilities" sets the probability maps of closed classes to 0 (paper), "logits" their
        logits, which then still beat negative ones (released code), "off" leaves all open.
      threshold: a class is closed at or under this probability of phase 1. Where that closes every
        class, the gate says nothing: in the mode "probabilities" all stay open.
    """

    mode: str
    threshold: float

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Gate":
        """Reads the fields `config.gate`."""
        return cls(config.mode, config.threshold)

    def segment(self, logits: jax.Array, presence: jax.Array) -> jax.Array:
        """Returns the strongest open class of each pixel.

        Args:
          logits: (B, H, W, C) of phase 2.
          presence: (B, C), the probabilities of phase 1.

        Returns:
          (B, H, W) uint8.
        """
        return self._close(logits, presence).argmax(axis=-1).astype(jnp.uint8)

    def probabilities(self, logits: jax.Array, presence: jax.Array) -> jax.Array:
        """Returns the probability maps behind the gate, whose strongest class is `segment`'s.

        In the mode "probabilities" those of closed classes are 0 and the others as they were, not
        scaled to a sum of 1. Arguments as of `segment`.

        Returns:
          (B, H, W, C) float32.
        """
        gated = self._close(logits, presence)
        probabilities = jax.nn.softmax(gated)
        if self.mode == "probabilities":
            everything, opened = (
                jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (logits, gated)
            )
            # The share of the open classes; never 0, or none of them would win.
            probabilities = probabilities * jnp.maximum(jnp.exp(opened - everything), 1e-30)
        return probabilities

    def _close(self, logits: jax.Array, presence: jax.Array) -> jax.Array:
        is_open = presence > self.threshold
        if self.mode == "logits":
            return logits * is_open[:, None, None, :]
        if self.mode == "probabilities":
            is_open = is_open | ~is_open.any(axis=-1, keepdims=True)
            # Softmax is increasing: the strongest probability of the open classes is their
            # strongest logit.
            return jnp.where(is_open[:, None, None, :], logits, -jnp.inf)
        return logits


def check_gate(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses to multiply logits of averaged predictions, which have none; see `config.validate`.

    Args:
      config: of a job with the fields `phase1`, `phase2`, `gate` and `tta`.
      prefix: of the fields in messages.

    Raises:
      InputError: names the two fields.
    """
    if config.phase1 and config.phase2 and config.gate.mode == "logits" and config.tta != "none":
        raise InputError(
            f"{prefix}gate.mode is 'logits', but {prefix}tta averages probabilities, which leaves "
            f"no logits to set to 0: set --{prefix}gate.mode=probabilities or --{prefix}tta=none"
        )
