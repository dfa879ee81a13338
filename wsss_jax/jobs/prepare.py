"""Cuts labelled patches out of annotated regions."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_collections

from data import prepare
from data.dataset import load_dataset
from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError

_CODES = rules.Rule(
    lambda v: (
        isinstance(v, Mapping | ml_collections.ConfigDict)
        and all(rules.sequence(rules.integer(0, 255)).allows(codes) for codes in v.values())
    ),
    "a mapping from class name to the mask values (0 to 255) that mean it",
)
FIELDS = {
    "images": rules.NAME,
    "masks": rules.NAME,
    "out": rules.NAME,
    "dataset": rules.NAME,
    "codes": _CODES,
    "excluded": rules.sequence(rules.integer(0, 255)),
    "patch": rules.integer(8, rules.MOST_PIXELS),
    "stride": rules.integer(1, rules.MOST_PIXELS),
    "resize": rules.integer(8, rules.MOST_PIXELS),
    "min_share": rules.PROBABILITY,
    "shares": rules.sequence(rules.PROBABILITY, 3),
    "seed": rules.SEED,
    "workers": rules.integer(1, 256),
}


def check(config: ml_collections.ConfigDict, prefix: str) -> None:
    """Refuses shares that do not add up; see `config.validate`."""
    if abs(sum(config.shares) - 1) > 1e-6:
        raise InputError(
            f"{prefix}shares is {tuple(config.shares)}: train, val and test must sum to 1"
        )


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes the patches, and the configuration beside them, into `config.out`."""
    del workdir
    dataset = load_dataset(config.dataset, config.images)
    codes = {name: tuple(values) for name, values in config.codes.items()}
    cutting = prepare.Cutting(
        config.patch,
        config.stride,
        config.resize,
        tuple(config.shares),
        config.seed,
        config.min_share,
    )
    summary = prepare.cut_patches(
        Path(config.images),
        Path(config.masks),
        Path(config.out),
        prepare.MaskCodes(dataset, codes, tuple(config.excluded)),
        cutting,
        workers=config.workers,
    )
    config_lib.save(config, Path(config.out))
    print(json.dumps(summary, indent=2))
