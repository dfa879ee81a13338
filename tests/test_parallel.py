import os
import pwd
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from wsss_jax import parallel
from wsss_jax.checkpoints import load_variables
from wsss_jax.errors import InputError

REPOSITORY = Path(__file__).parents[1]


def _step_on(devices: int, out: Path, settings: str) -> dict[str, np.ndarray]:
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",  # of LLVM; compiles in half the time
    )
    environment = os.environ | {
        "XLA_FLAGS": " ".join(flags),
        "PJRT_NPROC": str(2 * devices),  # fewer threads dead-lock the collectives
        "PYTHONPATH": str(REPOSITORY),
    }
    script = REPOSITORY / "tests" / "one_step.py"
    subprocess.run([sys.executable, script, out, settings], env=environment, check=True)
    with np.load(out) as results:
        return dict(results)


@pytest.mark.parametrize("settings", ["paper", pytest.param("all", marks=pytest.mark.long)])
def test_eight_devices_do_what_one_does(settings, tmp_path):
    """Gradients, statistics and losses of both phases, with dropout, augmentation and filling."""
    one, eight = (_step_on(devices, tmp_path / f"{devices}.npz", settings) for devices in (1, 8))
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.keys() == eight.keys()
    for phase in ("phase1", "phase2"):
        np.testing.assert_allclose(eight[f"{phase}/loss"], one[f"{phase}/loss"], rtol=1e-6)
    np.testing.assert_allclose(eight["averaged"], one["averaged"], rtol=1e-12)
    moved = {name: value for name, value in one.items() if "/moved/" in name and value.any()}
    assert sum("phase1" in name for name in moved) == 192  # all there is
    assert sum("phase2" in name for name in moved) > 130  # and every scale, bias and statistic
    for name, value in moved.items():
        # float64: only the sums over the batch are taken in another order
        tolerance = 1e-9 * np.abs(value).max() + 1e-12
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=tolerance, err_msg=name)
    for phase in ("phase1", "phase2"):  # what eight devices have saved, one restores
        variables = [load_variables(tmp_path / devices / phase, None) for devices in "18"]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *variables)


def test_eight_devices_train_histosegnet_as_one_does(tmp_path):
    """With dropout at single positions, the statistics of BatchNorm and class weights."""
    one, eight = (
        _step_on(devices, tmp_path / f"{devices}.npz", "histosegnet") for devices in (1, 8)
    )
    assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
    assert one.keys() == eight.keys()
    moved = {name: value for name, value in one.items() if "/moved/" in name}
    assert len(moved) == 7 * 6 + 2 and all(value.any() for value in moved.values())
    for name, value in one.items():
        tolerance = 1e-9 * np.abs(value).max() + 1e-12
        if name == "histosegnet/loss":  # summed in float32
            tolerance = 1e-6 * value
        np.testing.assert_allclose(eight[name], value, rtol=0, atol=tolerance, err_msg=name)


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(parallel.jax, "device_count", lambda: 8)
    parallel.check_batch_size(16)
    parallel.check_batch_size(16, parts=2)
    with pytest.raises(InputError, match=r"24, .* in 2 parts each: set --config\.batch_size=16"):
        parallel.check_batch_size(24, parts=2)
    with pytest.raises(InputError, match=r"20, which 8 devices .*--config\.batch_size=16"):
        parallel.check_batch_size(20)


def test_the_flags_of_several_hosts_go_together():
    with pytest.raises(InputError, match=r"--coordinator, --processes and --process go together"):
        parallel.start("127.0.0.1:1234", 2, None)


def test_map_batch_keeps_the_order():
    batch = {"x": np.arange(6, dtype=np.float32)}
    out = parallel.map_batch(lambda scale, batch: batch["x"] * scale)(np.float32(2), batch)
    np.testing.assert_array_equal(out, 2 * batch["x"])


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX without a configured cache, and a home folder for the test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_cached_programs_belong_to_the_user(no_cache):
    folder = no_cache / ".cache" / "wsss_jax"
    parallel.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # as version 0.1 may have made it
    jax.config.update("jax_compilation_cache_dir", None)
    parallel.cache_compiled_programs()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_programs_of_another_user_are_not_run(no_cache, monkeypatch, capsys):
    theirs = no_cache / "theirs"
    theirs.mkdir()
    (no_cache / ".cache").mkdir()
    (no_cache / ".cache" / "wsss_jax").symlink_to(theirs)
    monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    parallel.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert "wsss_jax belongs to another user; set JAX_COMPILATION_CACHE_DIR" in said
    assert said.count("\n") == 1


def test_a_cache_that_only_a_shell_would_expand_is_reported(no_cache, monkeypatch, capsys):
    monkeypatch.chdir(no_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    parallel.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None and not list(no_cache.iterdir())
    assert "XDG_CACHE_HOME is ~/cache, not an absolute path; set " in capsys.readouterr().err


def test_without_a_home_nothing_is_cached(no_cache, monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", _raise_key_error)
    parallel.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not cached for later runs: " in capsys.readouterr().err


def _raise_key_error(_):
    raise KeyError


def test_batches_that_accelerators_compute_faster_are_named(monkeypatch):
    devices = jax.device_count()
    assert parallel.advise_batch_size(20 * devices) is None  # CPUs do not care
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert parallel.advise_batch_size(24 * devices) is None
    assert parallel.advise_batch_size(48 * devices, 2) is None
    for batch_size, parts, each, near in ((20, 1, 20, 24), (24, 2, 12, 32), (3, 1, 3, 8)):
        advice = parallel.advise_batch_size(batch_size * devices, parts)
        assert f" {each} images" in advice and f"--config.batch_size={near * devices} " in advice


def test_a_mapped_step_takes_over_the_buffers_of_the_state():
    step = parallel.map_train_step(lambda state, batch, values, rng: state + batch["x"].sum())
    before = jax.device_put(np.zeros(4, np.float32), parallel.local_sharding())
    after = step(before, {"x": np.zeros(jax.device_count(), np.float32)}, {}, jax.random.key(0))
    assert before.is_deleted() and not after.is_deleted()


@pytest.mark.parametrize(
    ("platform", "version", "name"),
    [
        ("gpu", "PJRT C API\ncuda 12090", "cuda"),
        ("gpu", "PJRT C API\nrocm 60400", "rocm"),
        ("tpu", "", "tpu"),
    ],
)
def test_platforms_are_named_as_programs_are_chosen_by(platform, version, name, monkeypatch):
    client = SimpleNamespace(platform_version=version)
    device = SimpleNamespace(platform=platform, device_kind="its kind", client=client)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert (parallel.name_platform(), parallel.name_device()) == (name, "its kind")
