"""Compares this system's numbers with the reference's."""

import sys
from pathlib import Path

import ml_collections

from wsss_jax import config_rules as rules
from wsss_jax import runs
from wsss_jax.parity import compare

FIELDS = {
    "phase": rules.integer(1, 2),
    "weights": rules.NAME,
    "images": rules.NAME,
    "golden": rules.TEXT,
    "record": rules.TEXT,
    "precision": rules.one_of("float32", "bfloat16", "float64"),
}


@runs.holds_workdir
def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints the comparison; exit code 1 if any number differs."""
    if not compare.run(config, workdir):
        sys.exit(1)
