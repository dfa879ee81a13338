"""Images and masks of random values, and damage to their files."""

import numpy as np

from data import patch_files
from data.dataset import load_dataset

LUAD = load_dataset("luad_histoseg", "")
SIZE = 12


def write_random_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    patch_files.write_image(path, pixels)
    return pixels


def write_random_mask(path, size=SIZE, value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 5, (size, size)).astype(np.uint8)
    if value is not None:
        pixels[:] = value
    patch_files.write_mask(path, pixels, LUAD)
    return pixels


def damage(path, kind):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
            "text": b"not a picture",
            "empty": b"",
        }[kind]
    )
