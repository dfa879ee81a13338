"""Records what torchvision and scikit-image make of an image, for `tests/test_augmentation.py`.

    pip install torchvision==0.28.0 scikit-image==0.26.0
    python -m tests.golden.augmentation

It is run once, outside of the tests, and writes `augmentation.npz` beside this file.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
FACTORS = (0.0, 0.7, 1.0, 1.3)
TURNS = (-0.5, -0.1, 0.0, 0.07, 0.3)
STAIN_FACTORS = (1.04, 0.9, 1.1)
STAIN_OFFSETS = (0.03, -0.02, 0.05)  # optical density, base 10


def make_image() -> np.ndarray:
    """Makes (12, 12, 3) uint8: noise, and one row each of gray, black, white and pure colors."""
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    image[0] = np.linspace(0, 255, 12).astype(np.uint8)[:, None]
    image[1], image[2] = 0, 255
    image[3, :6] = 255 * np.uint8(np.stack(np.unravel_index(range(1, 7), (2, 2, 2)), axis=1))
    return image


def make_amounts() -> np.ndarray:
    """Makes (12, 12, 3) amounts of three stains, all above 0, in optical density of base 10."""
    return np.random.default_rng(1).uniform(0.1, 0.5, (12, 12, 3))


def record() -> None:
    import torch
    from skimage import color
    from torchvision.transforms.v2 import functional

    image = torch.from_numpy(make_image().astype(np.float32) / 255).permute(2, 0, 1)
    results = {}
    for name, values in (
        ("brightness", FACTORS),
        ("contrast", FACTORS),
        ("saturation", FACTORS),
        ("hue", TURNS),
    ):
        adjust = getattr(functional, f"adjust_{name}")
        changed = [adjust(image, value).permute(1, 2, 0).numpy() for value in values]
        results[name] = np.stack(changed).astype(np.float32)
    # scikit-image counts optical density in units of - log(1e-6), natural logarithm.
    unit = -np.log10(1e-6)
    results["before_stain"] = color.hed2rgb(make_amounts() / unit).astype(np.float32)
    amounts = color.rgb2hed(color.hed2rgb(make_amounts() / unit))
    changed = amounts * STAIN_FACTORS + np.asarray(STAIN_OFFSETS) / unit
    results["stain"] = color.hed2rgb(changed).astype(np.float32)
    np.savez_compressed(FILE, **results)


if __name__ == "__main__":
    record()
