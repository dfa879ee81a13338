"""Predictions averaged over the symmetries of an image, of any method."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from wsss_jax import symmetries
from wsss_jax.errors import InputError
from wsss_jax.methods.prediction import Prediction

_ROW_AXES = {"presence": None, "probabilities": 1, "activations": 2}


def average_predictions(
    predict: Callable[[jax.Array], Prediction],
    label: Callable[[Prediction], jax.Array],
    image: jax.Array,
    tta: str,
) -> Prediction:
    """Averages the probabilities of classes and of pixels, or else the activation maps.

    Args:
      predict: of images, without averaging.
      label: makes label maps of mean activation maps and presence, of methods that give those; see
        `contract.Method.label_activations`.
      image: (B, H, W, 3) uint8.
      tta: see `symmetries.average`.

    Returns:
      What `predict` gives. Logits are logarithms of mean probabilities: softmax gives the mean.

    Raises:
      InputError: images that cannot be turned, or a method that gives only label maps.
    """
    if tta == "none":
        return predict(image)

    def collect(image: jax.Array) -> dict[str, jax.Array]:
        prediction = predict(image)
        found = {"presence": prediction.presence, "activations": prediction.activations}
        if prediction.logits is not None:
            found["probabilities"] = jax.nn.softmax(prediction.logits)
        return {name: value for name, value in found.items() if value is not None}

    mean = symmetries.average(collect, image, tta, _ROW_AXES)
    average = Prediction(
        jnp.zeros(image.shape[:3], jnp.uint8), mean.get("presence"), None, mean.get("activations")
    )
    if "probabilities" in mean:
        # Never minus infinity, or nothing would be left where the gate closes the other classes.
        probabilities = jnp.maximum(mean["probabilities"], jnp.finfo(jnp.float32).tiny)
        average = average._replace(logits=jnp.log(probabilities))
    if average.activations is not None:
        return average._replace(label_maps=label(average))
    if average.logits is not None:
        return average._replace(label_maps=average.logits.argmax(axis=-1).astype(jnp.uint8))
    raise InputError(
        f"config.tta is {tta!r}, but the method gives label maps without probabilities, which have "
        "no mean: set --config.tta=none"
    )
