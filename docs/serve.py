"""Prints the share of each class in patches, with an exported program.

    python docs/serve.py phase2.stablehlo patch.png ...

Needs jax, flatbuffers, numpy and Pillow. The patches must have the size that the program was
exported for.
"""

import sys

import jax
import numpy as np
from PIL import Image

predict = jax.jit(jax.export.deserialize(np.fromfile(sys.argv[1], np.uint8).tobytes()).call)
for path in sys.argv[2:]:
    with Image.open(path, formats=["PNG"]) as picture:
        image = np.asarray(picture.convert("RGB"))
    result = jax.device_get(predict(image[None]))
    counts = np.bincount(result["segmentation"].ravel(), minlength=result["probability"].shape[-1])
    print(path, *(f"{index}:{share:.4f}" for index, share in enumerate(counts / counts.sum())))
