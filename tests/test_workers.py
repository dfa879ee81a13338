import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsss_jax import workers
from wsss_jax.errors import InputError

REPOSITORY = Path(__file__).parents[1]


def _end(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.1)


def _lives(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_ctrl_c_is_left_to_the_parent_and_a_death_is_reported():
    with workers.open_pool(1) as pool:
        pool.submit(_end, signal.SIGINT).result()
    with pytest.raises(InputError, match=r"a worker process died.*fewer --config\.workers"):
        _use_and_kill()


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def _read_blocked(process: int) -> int:
    """Returns the signals that a process blocks: a bit for each, that of number 1 first."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))


def test_every_process_of_a_pool_starts_with_signals_blocked(tmp_path):
    with workers.open_pool(3) as pool:
        for _ in range(3):  # none is done when the next one comes, so each gets its own process
            pool.submit(_wait_for, tmp_path / "go on")
        blocked = [_read_blocked(process) for process in pool._processes]
        (tmp_path / "go on").touch()
    assert len(blocked) == 3
    for number in (signal.SIGINT, signal.SIGHUP):
        assert all(bits >> (number - 1) & 1 for bits in blocked)


def test_a_closed_terminal_ends_neither_workers_nor_the_semaphore_tracker():
    script = (
        "import os, signal, time\n"
        "from wsss_jax import signals, workers\n"
        "signals.handle()\n"
        "with workers.open_pool(1) as pool:\n"
        "    pool.submit(os.getpid).result()\n"
        "    with signals.defer() as received:\n"
        "        os.killpg(0, signal.SIGHUP)\n"
        "        time.sleep(0.2)\n"
        "        assert pool.submit(os.getpid).result() and received\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert child.returncode == 75
    assert child.stderr == "stopped by SIGHUP; the same command continues, or starts over\n"


def _use_and_kill() -> None:
    with workers.open_pool(1) as pool:
        pool.submit(_end, signal.SIGKILL).result()


def test_workers_end_with_a_parent_that_is_killed():
    script = (
        "import os, time\n"
        "from wsss_jax import workers\n"
        "with workers.open_pool(2) as pool:\n"
        "    futures = [pool.submit(time.sleep, 1) for _ in range(2)]\n"
        "    [future.result() for future in futures]\n"
        "    pool.submit(time.sleep, 300)\n"
        "    print(*pool._processes, flush=True)\n"
        "    time.sleep(300)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    processes = [int(word) for word in parent.stdout.readline().split()]
    assert processes and all(map(_lives, processes))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(map(_lives, processes)):
        assert time.monotonic() < end
        time.sleep(0.01)
