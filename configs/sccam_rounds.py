"""All rounds of SC-CAM, phase 2 on its masks, and their scores, for several seeds.

    python main.py --config=configs/sccam_rounds.py:of=lung --workdir=runs/lung_sccam_rounds

`of` is luad, bcss, lung or own. With `beside=paper` (or `reference`, `tuned`) both phases of this
system are trained with the same seeds and compared. Fields of a step are those of its own file,
such as `--config.jobs.sccam.lung_sccam_round1.sub_weight=1`.
"""

import importlib

from configs import base, base_sccam

_STEPS = ("phase1", "masks", "phase2", "evaluate")
_OF = ("luad", "bcss", "lung", "own")


def get_config(arg=None):
    args = base.arguments(arg, of="lung", beside="")
    of, beside = args["of"], args["beside"]
    if of not in _OF:
        raise ValueError(f"of={of} is not one of {', '.join(_OF)}")
    if beside and beside not in base.VARIANTS:
        raise ValueError(f"beside={beside} is not one of {', '.join(base.VARIANTS)}")

    def load(name, arguments=""):
        return importlib.import_module(f"configs.{of}_{name}").get_config(arguments)

    rounds = {}
    for number in range(base_sccam.LAST_ROUND + 1):
        names = ("sccam_clusters", "sccam") if number else ("sccam",)
        for name in names:
            step = base_sccam.name_run(f"{of}_{name}", number).removeprefix("runs/")
            rounds[step] = load(name, f"round={number}")
    rounds |= {f"{of}_sccam_{step}": load(f"sccam_{step}") for step in _STEPS[1:]}
    variants = {"sccam": rounds}
    if beside:
        variants[beside] = {f"{of}_{step}": load(step, f"variant={beside}") for step in _STEPS}
    steps = tuple(step for by_step in variants.values() for step in by_step)
    return base.repeat(steps, variants)
