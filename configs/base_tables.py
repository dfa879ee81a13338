"""The rows of the paper's tables, each a chain of jobs that ends with an evaluation."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base, base_sccam

# (name of a step, arguments) -> its configuration: `get("phase2", variant="tuned")`
Get = Callable[..., ConfigDict]

_PHASE1, _PHASE2 = "runs/phase1", "runs/phase2"
_ROUNDS = range(1, base_sccam.LAST_ROUND + 1)
STEPS = (
    "draw",  # of the demo
    "histosegnet",
    "sccam",
    *(f"sccam_{kind}round{number}" for number in _ROUNDS for kind in ("clusters_", "")),
    "phase1",
    "masks",
    "phase2",
    "evaluate",
)


def read_file(data: str, step: str, **args: Any) -> ConfigDict:
    """Reads the configuration of a data set's step from its file, such as `luad_phase2.py`.

    The names of the runs lose what says whose they are: here they are `runs/phase2` and so on.
    """
    text = ",".join(f"{key}={value}" for key, value in args.items())
    config = importlib.import_module(f"configs.{data}_{step}").get_config(text)
    return ConfigDict(_rename(config.to_dict(), f"runs/{data}_"))


def _rename(value: Any, start: str) -> Any:
    """Leaves out what the names of a data set's runs start with."""
    if isinstance(value, dict):
        return {name: _rename(inner, start) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_rename(inner, start) for inner in value)
    if isinstance(value, str) and value.startswith(start):
        return f"runs/{value.removeprefix(start)}"
    return value


# Arguments of the files: pretrained weights by network, and the jobs that start from them.
WEIGHTS = {"resnet38": ("phase1", "sccam"), "deeplab": ("phase2",), "vgg16": ("histosegnet",)}


def arguments(text: str | None) -> dict[str, str]:
    """Reads the arguments of the files.

    They are a file, or an earlier run, for each network ("" = random weights), and `data`, the
    folder of the data set ("" = where it is looked for).
    """
    return base.arguments(text, data="", **dict.fromkeys(WEIGHTS, ""))


def tables(
    get: Get,
    *,
    title: str,
    published: str = "",
    args: Mapping[str, str] | None = None,
    first: Mapping[str, ConfigDict] | None = None,
) -> ConfigDict:
    """The job that fills the tables.

    Args:
      get: gives the configurations, which name each other's runs as `runs/<step>`.
      title: names the data set.
      published: name of the data set in the paper's tables, `report/published.json`; "" = not in
        them.
      args: see `arguments`.
      first: a step before all others, such as one that draws the data.
    """
    rows = _list_rows(get, (args or {}).get("data", ""))
    jobs = {
        row: {
            step: config.copy_and_resolve_references()
            for step, config in {**(first or {}), **steps}.items()
        }
        for row, steps in rows.items()
    }
    for config in (config for steps in jobs.values() for config in steps.values()):
        for network, of_jobs in WEIGHTS.items():
            if args and config.job in of_jobs:
                config.init = args[network]
    return ConfigDict(
        {
            "job": "tables",
            "steps": STEPS,
            "tables": ("I", "II", "III", "IV"),
            "rows": tuple(rows),
            "seeds": (0,),  # of every run that has one; the tables show mean and spread of several
            "title": title,
            "published": published,
            "examples": 6,  # test patches in the picture; 0 = none
            "palette": "dataset",  # of the picture: the data set's colors, or "colorblind"
            "jobs": jobs,
        }
    )


def _list_rows(get_given: Get, root: str) -> dict[str, dict[str, ConfigDict]]:
    """Returns the chains by row; the last line of each one's evaluation is the row.

    Args:
      get_given: see `tables`.
      root: folder of the data set; "" = that of the configurations.
    """

    def get(step: str, **args: Any) -> ConfigDict:
        config = get_given(step, **args)
        if root and config.data.root:
            config.data.root = root
        return config

    paper = {step: get(step, variant="paper") for step in ("phase1", "masks", "phase2")}
    tuned = {step: get(step, variant="tuned") for step in ("phase1", "masks", "phase2")}
    plain = get("phase1", variant="paper", dropout="off")
    constant = get("phase1", variant="paper", dropout="constant")
    last_round = f"runs/{_name_round(base_sccam.LAST_ROUND)}"
    rows = {
        "histosegnet": {
            "histosegnet": get("histosegnet"),
            "evaluate": _score(get, runs=("runs/histosegnet",)),
        },
        "sccam": {
            **_list_rounds(get),
            "evaluate": _score(get, runs=(last_round,)),
        },
        "plain": {"phase1": plain, "evaluate": _score(get, phase1=_PHASE1)},
        "constant": {"phase1": constant, "evaluate": _score(get, phase1=_PHASE1)},
        "phase1": {"phase1": paper["phase1"], "evaluate": _score(get, phase1=_PHASE1)},
    }
    for layer in paper["phase2"].layers:
        phase2 = paper["phase2"].copy_and_resolve_references()
        phase2.layers, phase2.layer_weights = (layer,), (1.0,)
        rows[layer] = {**paper, "phase2": phase2, "evaluate": _score(get, phase2=_PHASE2)}
    rows["phase2"] = {**paper, "evaluate": _score(get, phase2=_PHASE2)}
    rows["gated"] = {**paper, "evaluate": _score(get, phase1=_PHASE1, phase2=_PHASE2)}
    rows["supervised"] = {
        "phase2": _supervise(paper["phase2"], paper["phase1"]),
        "evaluate": _score(get, phase2=_PHASE2),
    }
    rows["tuned"] = {**tuned, "evaluate": _score(get, _PHASE1, _PHASE2, variant="tuned")}
    return rows


def _score(
    get: Get,
    phase1: str = "",
    phase2: str = "",
    runs: tuple[str, ...] = (),
    variant: str = "paper",
) -> ConfigDict:
    """An evaluation of these runs alone."""
    config = get("evaluate", variant=variant)
    config.phase1, config.phase2, config.runs = phase1, phase2, runs
    config.sheet_patches = 0  # the tables have a picture of their own
    return config


def _supervise(phase2: ConfigDict, phase1: ConfigDict) -> ConfigDict:
    """Phase 2 on the true masks of the training patches, `train/mask` of the data set."""
    config = phase2.copy_and_resolve_references()
    config.data = phase1.data
    config.masks = f"{phase1.data.root}/train/mask"
    config.layers, config.layer_weights = ("truth",), (1.0,)
    return config


def _list_rounds(get: Get) -> dict[str, ConfigDict]:
    """Returns the rounds of SC-CAM, and the clusters between them."""
    steps = {"sccam": get("sccam", round=0)}
    for number in _ROUNDS:
        steps[f"sccam_clusters_round{number}"] = get("sccam_clusters", round=number)
        steps[_name_round(number)] = get("sccam", round=number)
    return steps


def _name_round(number: int) -> str:
    return f"sccam_round{number}"
