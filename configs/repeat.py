"""Trains and scores several seeds, and compares variants.

    python main.py --config=configs/repeat.py:of=lung,variants=paper+reference --workdir=runs/seeds

`of` names the steps: files of this folder in their order, joined by `+`, the last an evaluation;
`of=lung` is short for `lung_phase1+lung_masks+lung_phase2+lung_evaluate`. `variants` are joined by
`+`, too. `slow:paper` is one called slow that starts as `variant=paper`, to be changed by
`--config.jobs.slow.lung_phase1.optimizer.learning_rate=0.05`.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs import base

_STEPS = ("phase1", "masks", "phase2", "evaluate")


def _list_steps(of: str) -> tuple[str, ...]:
    folder, steps = Path(__file__).parent, []
    for name in of.split("+"):
        whole = [name] if (folder / f"{name}.py").is_file() else [f"{name}_{s}" for s in _STEPS]
        for step in whole:
            if not (folder / f"{step}.py").is_file() or step.startswith(("base", "_")):
                raise ValueError(f"of={of}: there is no configs/{step}.py; name files of configs/")
        steps += whole
    return tuple(steps)


def _load(step: str) -> Callable[[str], ConfigDict]:
    """Loads the function that gives the configuration of a step's variants."""
    get = importlib.import_module(f"configs.{step}").get_config
    try:
        get("variant=paper")
    except (TypeError, ValueError):  # it takes no argument, or not this one
        raise ValueError(
            f"configs/{step}.py has no variants and cannot be repeated: run it before, by itself"
        ) from None
    return get


def get_config(arg=None):
    args = base.arguments(arg, of="lung", variants="paper")
    steps = _list_steps(args["of"])
    loaded = {step: _load(step) for step in steps}
    variants = {}
    for word in args["variants"].split("+"):
        name, _, variant = word.partition(":")
        if name in variants or not name.isidentifier():
            raise ValueError(
                f"variants={args['variants']}: give each variant a name of its own, of letters, "
                "digits and _"
            )
        variants[name] = {step: get(f"variant={variant or name}") for step, get in loaded.items()}
    return base.repeat(steps, variants)
