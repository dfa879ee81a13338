"""A trained network as a StableHLO program, which JAX runs without any code of ours."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path
from wsss_jax.methods import arithmetic
from wsss_jax.training.trained import Trained


def save(
    trained: Trained,
    path: Path,
    *,
    precision: str,
    platforms: Sequence[str],
    size: int,
) -> None:
    """Writes the prediction of a trained phase, weights included, as one `jax.export` file.

    `jax.export.deserialize(<bytes of the file>).call` maps images (B, size, size, 3) uint8, B >= 1
    chosen by every call, to a dictionary:

      "segmentation" (B, size, size) uint8: the label maps that the method predicts, without gate.
      "probability" float32: of methods that classify patches (phase 1) their presence (B, C), of
        those with logits (phase 2) their softmax (B, size, size, C); of others there is none.

    The caller compiles once for each B, every time with a copy of the weights. JAX promises that
    its releases of up to six months later (three weeks before) read the file.

    Args:
      trained: of any method.
      path: of the new file; about 4 bytes for each parameter, 2 in bfloat16.
      precision: "float32", "tensorfloat32" or "bfloat16", what the program computes in.
      platforms: where it can run, of "cpu", "cuda" and "tpu"; none of them need be here.
      size: height and width of the images, pixels.

    Raises:
      InputError: no platform, or a size under 1.
    """
    if not platforms:
        raise InputError(
            "config.platforms is empty: name one or more of 'cpu', 'cuda' and 'tpu', such as "
            "--config.platforms=\"('cpu',)\""
        )
    if size < 1:
        raise InputError(
            f"config.size comes to {size}: set --config.size to the height and width of the "
            "images, in pixels"
        )
    config = arithmetic.set_precision(trained.config, precision)
    trained = trained._replace(
        config=config,
        network=trained.method.build_network(config, trained.dataset.num_classes),
    )
    # The layers convert NumPy kernels while they are traced, so that a bfloat16 program holds
    # bfloat16 kernels; JAX arrays would go in as float32, to be converted in every call.
    weights = jax.tree.map(np.asarray, trained.variables)

    def predict(image: jax.Array) -> dict[str, jax.Array]:
        # XLA would work out the factors of known statistics in advance, rounding otherwise than
        # a run does: probabilities were off by 2e-6 in float32, by 5e-4 in bfloat16.
        variables = jax.tree.map(
            lambda x: jax.lax.optimization_barrier(x) if x.ndim == 1 else x, weights
        )
        prediction = trained.predict(variables, image)
        results = {"segmentation": prediction.label_maps}
        if prediction.presence is not None:
            results["probability"] = prediction.presence
        elif prediction.logits is not None:
            results["probability"] = jax.nn.softmax(prediction.logits)
        return results

    shape = export.symbolic_shape(f"batch, {size}, {size}, 3")
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    program = export.export(jax.jit(predict), platforms=platforms)(image)
    with atomic_path(path) as temporary:
        temporary.write_bytes(program.serialize())
