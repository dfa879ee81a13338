"""What a user sees at the command line: one line for what can be mended, exit code 2."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import synthetic
from tests.conftest import SIZE
from tests.forked_main import Forks

REPOSITORY = Path(__file__).parents[1]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


def _refusal(run: Callable[..., subprocess.CompletedProcess], *arguments: str) -> str:
    """The error line of a run that must be refused."""
    finished = run(*arguments)
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.returncode == 2 and len(lines) == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no --config"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config=configs/luad_phase1.py:variant=papre"], "variant=papre is not one of"),
        (["--config=configs/luad_phase1.py:dropout=linear"], "pda.schedule is 'linear'"),
        (["--config=configs/luad_phase1.py", "--config.batchsize=4"], "batch_size"),
        (["--config=configs/luad_phase1.py", "--config.batch_size=many"], "many"),
        (["--config=configs/luad_phase1.py", "--config.batch_size=0"], "at least 1"),
        (["--config=configs/luad_phase1.py", "--workdri=x"], "workdri"),
        (["--config=configs/luad_phase1.py", "--config.data.root=nowhere"], "nowhere"),
        (["--config=configs/luad_masks.py", "--config.phase1=nowhere"], "nowhere"),
        (["--config=configs/segment_slides.py", "--config.slides=a.svs"], "phase2 is ''"),
        (["--config=configs/doctor.py", "--config.mpp=inf"], "at most 20"),
        (["--config=configs/doctor.py", "--config.slide=~/a.svs"], "config.slide is '~/a.svs', wh"),
        (["--config=configs/doctor.py", "--config.tissue.closing=1e5"], "at most 1000"),
        (["--config=configs/doctor.py", "--config.tissue.min_hole=inf"], "min_hole is inf"),
    ],
)
def test_refusals(arguments, words, forks, tmp_path):
    workdir = tmp_path / "run"
    assert words in _refusal(forks.run, *arguments, f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.fixture
def tissue(tmp_path):
    root = tmp_path / "data"
    synthetic.write_dataset(root, {"train": 8, "val": 2}, SIZE, seed=0)
    return root


def _phase1(run: Callable[..., subprocess.CompletedProcess], root: Path, *more: str) -> str:
    return _refusal(
        run,
        "--config=configs/luad_phase1.py",
        f"--workdir={root.parent / 'run'}",
        f"--config.data.root={root}",
        "--config.data.dataset=",
        f"--config.data.patch_size={SIZE}",
        "--config.batch_size=4",
        *more,
    )


def test_bad_files_are_named(tissue, forks):
    """Each kind of bad file, put in after the one before was mended."""
    patch = sorted((tissue / "train").iterdir())[0]
    good = patch.read_bytes()

    unlabelled = patch.with_name("unlabelled.png")
    unlabelled.write_bytes(good)
    assert "unlabelled.png: no label" in _phase1(forks.run, tissue)
    unlabelled.rename(patch.with_name("short-[1 0].png"))
    assert "label has 2 values" in _phase1(forks.run, tissue)
    patch.with_name("short-[1 0].png").unlink()

    patch.write_bytes(good[: len(good) // 2])
    assert f"{patch.name}: damaged, or not a" in _phase1(forks.run, tissue)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(patch)
    assert f"30x20 pixels, expected {SIZE}x{SIZE}" in _phase1(forks.run, tissue)
    patch.write_bytes(good)

    mask = sorted((tissue / "val" / "mask").iterdir())[0]
    Image.fromarray(np.full((SIZE, SIZE), 9, np.uint8)).save(mask)
    assert f"{mask.name}: mask value 9 is outside 0..4" in _phase1(forks.run, tissue)
    assert not (tissue.parent / "run").exists()


def test_a_batch_that_the_devices_cannot_share(tissue):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = partial(_run, **environment)
    assert "config.batch_size is 4, which 8 devices" in _phase1(run, tissue)
    assert not (tissue.parent / "run").exists()


def test_a_folder_that_cannot_be_made():
    words = _refusal(_run, "--config=configs/demo.py", "--workdir=/dev/null/run")
    assert words == "error: /dev/null is a file, not a folder: choose another folder"


def test_what_writing_raises_is_one_line():
    script = """
import errno, os, sys
import main
from configs import base, base_tools
from wsss_jax import jobs
class Flag:
    def __init__(self, value):
        self.value = value
main._COORDINATOR = main._PROCESSES = main._PROCESS = Flag(None)
main._WORKDIR = Flag("runs/w")
def fail(job, error):
    def run(*_):
        raise error
    main._CONFIG, jobs.run = Flag(job), run
    try:
        main.main([])
    except SystemExit as stopped:
        print(stopped.code)
evaluate, prepare = base.evaluate("a", "b"), base_tools.prepare("i", "m", "patches", "bcss_wsss")
for number in (errno.EFBIG, errno.EIO, errno.ENOSPC):
    fail(evaluate, OSError(number, os.strerror(number)))
fail(prepare, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "patches/train/img/a.png"))
fail(evaluate, BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
main._WORKDIR = Flag("~/w")
fail(evaluate, RuntimeError)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.stdout.split() == ["2", "2", "2", "2", "141", "2"], finished.stderr
    assert finished.stderr.splitlines() == [
        "error: runs/w: File too large: check the disk or name another --workdir",
        "error: runs/w: Input/output error: check the disk or name another --workdir",
        "error: runs/w: No space left on device: free some or name another --workdir",
        "error: patches: No space left on device: free some or name another --config.out",
        "error: --workdir is '~/w', which begins with ~: write the whole path, from / on (./~ for "
        "something of that name)",
    ]


def test_a_signal_waits_until_jax_is_loaded():
    """An error within the loading of its library aborts the process."""
    script = """
import os, signal, sys
from wsss_jax import signals
signals.handle()
import main
from configs import doctor
class Flag:
    def __init__(self, value):
        self.value = value
main._WORKDIR, main._CONFIG = Flag("runs/w"), Flag(doctor.get_config())
class Finder:
    def find_spec(self, name, *_):
        if name == "jaxlib":
            os.kill(os.getpid(), signal.SIGTERM)
            print("went on")
sys.meta_path.insert(0, Finder())
main.main([])
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (finished.returncode, finished.stdout) == (75, "went on\n")
    assert finished.stderr == "stopped by SIGTERM; the same command continues, or starts over\n"


def test_programs_kept_from_an_earlier_run_load_in_silence(tmp_path, monkeypatch):
    """On processors with AVX-512 XLA's log fills the screen when it loads one."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)  # JAX has set it in this process
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    assert _run("--config=configs/doctor.py", **kept).returncode == 0
    assert any(tmp_path.iterdir())
    again = _run("--config=configs/doctor.py", **kept)
    assert again.returncode == 0 and again.stderr == ""


def test_frozen_without_weights(tissue, forks):
    assert "config.init is empty" in _phase1(forks.run, tissue, "--config.model.batch_norm=frozen")


def test_a_run_that_was_terminated_exits_with_75(tissue):
    """A scheduler can tell it from a failure, and starts it again."""
    arguments = [f"--config.data.root={tissue}", "--config.data.dataset=", "--config.epochs=1000"]
    arguments += [f"--config.data.patch_size={SIZE}", "--config.data.workers=0"]
    arguments += [
        "--config.model.width=0.0625",
        "--config.batch_size=4",
        f"--workdir={tissue.parent / 'run'}",
    ]
    # HistoSegNet compiles in a fraction of the time of the other networks.
    command = [sys.executable, "main.py", "--config=configs/luad_histosegnet.py", *arguments]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    lines = iter(child.stdout.readline, "")
    assert any(line.startswith("first step done") for line in lines)
    child.terminate()
    child.stdout.read()
    assert child.wait() == 75
