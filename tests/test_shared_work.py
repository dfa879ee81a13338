"""Several processes that are given one command of `repeat`."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_jobs import STEPS, Fake, make_config
from wsss_jax import chain_runner, chains, jobs, signals
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.files import hold_lock


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    monkeypatch.setattr(jobs, "run", fake.run)
    return fake


class _Other:
    """Another process that works on a step until it ends, with or without having done it."""

    def __init__(self, lock: Path, done: Callable[[], object] = lambda: None):
        self._lock, self._done, self._ends = lock, done, threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        with hold_lock(self._lock):
            self._begun.set()
            self._ends.wait(60)
            self._done()

    def __enter__(self) -> "_Other":
        self._thread.start()
        self._begun.wait(60)
        return self

    def end(self) -> None:
        self._ends.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.end()


def test_a_process_goes_on_with_what_another_leaves(tmp_path, fake, monkeypatch, capsys):
    """It does what is free, waits, says for what, and takes over."""
    config = make_config("paper", "slow:paper", seeds=(0, 1))
    config.jobs.slow.lung_phase2.optimizer.learning_rate = 0.05
    config_lib.save(config, tmp_path)
    free = [*(f"paper/{step}" for step in STEPS), "slow/lung_phase2", "slow/lung_evaluate"]
    with _Other(tmp_path / "seed0" / "paper" / ".lung_phase1.lock") as other:
        waited = iter((lambda: None, other.end))
        seen = []

        def wait() -> None:
            seen.append(list(fake.done))
            next(waited)()

        monkeypatch.setattr(chain_runner, "_wait", wait)
        jobs.run(config, tmp_path)
    assert seen == [[f"seed1/{name}" for name in free]] * 2
    assert fake.done == [f"seed{seed}/{name}" for seed in (1, 0) for name in free]
    assert not json.loads((tmp_path / "scores.json").read_text())["missing"]
    assert not list(tmp_path.rglob("*.lock"))
    waiting = "waiting for other processes: seed 0, paper: lung_phase1; seed 0, slow: lung_phase1"
    assert capsys.readouterr().out.count(waiting) == 1


def test_a_process_waits_for_what_others_finish(tmp_path, fake, monkeypatch):
    """What the other has done meanwhile is not done again, and is in its table."""
    config = make_config("paper", seeds=(0,))
    config_lib.save(config, tmp_path)
    first, *_ = chains.plan(config.steps, config.jobs, tmp_path, 0)["paper"]

    def finish() -> None:
        description = chains.describe(first)
        fake.run(first.config, first.folder)
        chains.write_record(first, description)

    with _Other(tmp_path / "seed0" / "paper" / ".lung_phase1.lock", finish) as other:
        monkeypatch.setattr(chain_runner, "_wait", other.end)
        jobs.run(config, tmp_path)
    assert fake.done == [f"seed0/paper/{step}" for step in STEPS]
    assert json.loads((tmp_path / "scores.json").read_text())["rows"][0]["seeds"] == [0]


def test_a_lock_that_is_no_file_is_not_waited_for(tmp_path, fake):
    lock = tmp_path / "seed0" / "paper" / ".lung_phase1.lock"
    lock.parent.mkdir(parents=True)
    os.mkfifo(lock)
    config = make_config("paper", seeds=(0,))
    config_lib.save(config, tmp_path)
    with pytest.raises(InputError, match="a named pipe or a device"):
        jobs.run(config, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(tmp_path, number):
    command = [sys.executable, "main.py", "--config=configs/repeat.py:of=lung"]
    command += ["--config.seeds=(0,)", f"--workdir={tmp_path}"]
    config_lib.save(make_config("paper", seeds=(0,)), tmp_path)
    with hold_lock(tmp_path / "seed0" / "paper" / ".lung_phase1.lock"):
        child = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        line = child.stdout.readline()
        assert line == b"waiting for other processes: seed 0, paper: lung_phase1\n"
        child.send_signal(number)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == signals.EXIT_PREEMPTED
    assert errors.decode().startswith(f"stopped by {number.name}; the same command continues")
