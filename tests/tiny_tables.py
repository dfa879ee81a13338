"""The paper's tables of tiny networks on drawn tissue, in seconds."""

from ml_collections import ConfigDict

from configs import base
from tests.conftest import tiny_phase1, tiny_phase2
from wsss_jax import config as config_lib


def draw() -> ConfigDict:
    return base.draw(size=32, train=12, val=4, test=5)


def make_config(*rows: str) -> ConfigDict:
    """Rows of tiny networks on drawn tissue."""
    phase1 = tiny_phase1("runs/draw/data")
    phase1.epochs = 1
    opening = base.masks("runs/phase1")
    opening.data.workers, opening.batch_size, opening.sheet_patches = 0, 8, 2
    phase2 = tiny_phase2("runs/masks")
    phase2.epochs = 1

    def score(**named: str) -> ConfigDict:
        config = base.evaluate("", "")
        config.data.workers, config.batch_size, config.sheet_patches = 0, 8, 0
        config.update(named)
        return config

    both = {"phase1": "runs/phase1", "phase2": "runs/phase2"}
    every = {
        "plain": {"phase1": phase1.copy_and_resolve_references(), "evaluate": score(**both)},
        "phase1": {"phase1": phase1, "evaluate": score(phase1="runs/phase1")},
        "gated": {"phase1": phase1, "masks": opening, "phase2": phase2, "evaluate": score(**both)},
    }
    every["plain"]["phase1"].pda.schedule = "off"
    every["plain"]["evaluate"].phase2 = ""
    config = ConfigDict(
        {
            "job": "tables",
            "steps": ("draw", "phase1", "masks", "phase2", "evaluate"),
            "tables": ("I", "III", "IV"),
            "rows": rows,
            "seeds": (1,),
            "title": "Tiny <tissue>",
            "published": "",
            "examples": 2,
            "palette": "colorblind",
            "jobs": {row: {"draw": draw(), **every[row]} for row in rows},
        }
    )
    config_lib.validate(config)
    return config
