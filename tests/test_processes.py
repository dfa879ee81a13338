"""Several processes, one for each host, share a run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from wsss_jax.checkpoints import load_variables
from wsss_jax.training.history import SCORE

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[1]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run(processes: int, *folders: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    script, port = REPOSITORY / "tests" / "two_processes.py", _free_port()
    children = [
        subprocess.Popen(
            [sys.executable, script, *map(str, (processes, process, port, *folders))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [child.communicate(timeout=300)[0] for child in children]
    for child, output in zip(children, outputs):
        assert child.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def both(tissue_dir, runs_dir, tmp_path_factory) -> list[Path]:
    """The folders that one process and two processes have written."""
    folders = [tmp_path_factory.mktemp(f"processes{n}") for n in (1, 2)]
    for processes, folder in enumerate(folders, start=1):
        _run(processes, tissue_dir, runs_dir, folder)
    return folders


def test_every_patch_is_read_once_an_epoch(both):
    one, two = both
    (indices, weight, _), *_ = _seen(one, 1)
    parts = _seen(two, 2)
    joined = [np.concatenate(arrays, axis=1) for arrays in zip(*parts)]
    np.testing.assert_array_equal(joined[0], indices)
    np.testing.assert_array_equal(joined[1], weight)
    np.testing.assert_array_equal(joined[2], np.tile(np.arange(4), (6, 1)))
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(indices[epoch][weight[epoch] > 0]) == list(range(11))


def _seen(folder: Path, processes: int) -> list[list[np.ndarray]]:
    found = []
    for process in range(processes):
        with np.load(folder / f"seen{process}.npz") as arrays:
            found.append([arrays[name] for name in arrays.files])
    return found


def test_two_processes_train_what_one_does(both):
    one, two = (load_variables(folder / "run", SCORE) for folder in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, two)
    histories = [(folder / "run" / "history.json").read_text() for folder in both]
    numbers = [np.array([float(x) for x in _numbers(text)]) for text in histories]
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-4)
    # written once
    assert len(list((both[1] / "run" / "tensorboard").iterdir())) == 1


def _numbers(history: str) -> list[str]:
    words = history.replace(",", " ").split()
    return [word for word in words if word[-1].isdigit()]


@pytest.mark.parametrize("job", ["masks", "evaluate"])
def test_masks_and_scores_are_those_of_one_process(both, job):
    one, two = ({p.relative_to(f / job): p for p in (f / job).rglob("*.*")} for f in both)
    assert one.keys() == two.keys()
    assert len([path for path in one if path.suffix == ".png"]) > 5
    for name, path in one.items():
        if path.suffix in (".png", ".csv"):
            assert two[name].read_bytes() == path.read_bytes(), name
