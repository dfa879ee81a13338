import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax import checkpoints as checkpoint_files
from wsss_jax.checkpoints import Checkpoints, State, has_checkpoint, list_steps, load_variables
from wsss_jax.errors import InputError


def _state(step: int, features: int = 3) -> State:
    variables = {
        "params": {"fc8": {"kernel": jnp.full((2, features), step, jnp.float32)}},
        "batch_stats": {},
    }
    return State(jnp.int32(step), variables, {"trace": jnp.full((2, features), -step, jnp.float32)})


def _save(workdir, scores):
    checkpoints = Checkpoints(workdir, "miou")
    for step, score in enumerate(scores, start=1):
        checkpoints.save(_state(step), {"history": [step]}, {"miou": score, "acc": 0.0})
    return checkpoints


def _steps(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.is_dir())


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    checkpoints = _save(tmp_path, [0.1, 0.8, 0.3, 0.2, 0.1])
    assert checkpoints.find_best() == 2
    state, meta = checkpoints.restore_latest(_state(0))
    jax.tree.map(np.testing.assert_array_equal, state, _state(5))
    assert meta == {"history": [5]}
    assert _steps(tmp_path) == ["2", "4", "5"]
    checkpoints.save(_state(6), {}, None)  # in the middle of an epoch, so without a score
    checkpoints.save(_state(7), {}, None)
    assert checkpoints.find_best() == 2 and _steps(tmp_path) == ["2", "6", "7"]
    checkpoints.close()


def _damage(workdir, step):
    for path in (workdir / "checkpoints" / str(step) / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_going_back_from_a_damaged_checkpoint(tmp_path, capsys):
    _save(tmp_path, [0.1, 0.8, 0.3]).close()
    _damage(tmp_path, 3)
    like = jax.eval_shape(lambda: _state(0).variables)
    variables = load_variables(tmp_path, None, like)
    jax.tree.map(np.testing.assert_array_equal, variables, _state(2).variables)
    assert "checkpoints/3 is damaged" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path, "miou")
    state, _ = checkpoints.restore_latest(_state(0))
    assert int(state.step) == 2
    checkpoints.save(_state(3), {"history": [3]}, {"miou": 0.3})  # in its place
    state, meta = checkpoints.restore_latest(_state(0))
    assert int(state.step) == 3 and meta == {"history": [3]}
    for step in (2, 3):
        _damage(tmp_path, step)
    with pytest.raises(InputError, match="all checkpoints are damaged"):
        checkpoints.restore_latest(_state(0))
    checkpoints.close()


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\x00\xff garbage" * 20),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file", ["_CHECKPOINT_METADATA", "variables/_METADATA", "variables/manifest.ocdbt"]
)
def test_going_back_from_every_damage(file, damage, tmp_path, capsys):
    """The newest step, which is also the best, is damaged."""
    _save(tmp_path, [0.1, 0.3, 0.8]).close()
    DAMAGES[damage](tmp_path / "checkpoints" / "3" / file)
    like = jax.eval_shape(lambda: _state(0).variables)
    for score in (None, "miou"):
        variables = load_variables(tmp_path, score, like)
        jax.tree.map(np.testing.assert_array_equal, variables, _state(2).variables)
        said = capsys.readouterr().out
        assert "checkpoints/3 is damaged" in said or "checkpoints/3 is not a complete" in said
    checkpoints = Checkpoints(tmp_path, "miou")
    state, _ = checkpoints.restore_latest(_state(0))
    assert int(state.step) == 2
    checkpoints.save(_state(3), {"history": [3]}, {"miou": 0.8})  # in its place
    assert int(checkpoints.restore_latest(_state(0))[0].step) == 3
    checkpoints.close()


@pytest.mark.parametrize(
    "scores",
    ["", "{", "[]", '{"other": 1}']
    + [f'{{"miou": {value}}}' for value in ('"high"', '"0.5"', "null", "NaN", "true", "Infinity")],
)
def test_damaged_scores_of_a_step(scores, tmp_path, capsys):
    _save(tmp_path, [0.1, 0.3, 0.8]).close()
    (tmp_path / "checkpoints" / "3" / "metrics" / "metrics").write_text(scores)
    variables = load_variables(tmp_path, "miou", None)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], _state(2).variables["params"])
    assert "checkpoints/3 is not a complete checkpoint" in capsys.readouterr().out


def _rewrite(workdir, step, change):
    """Saves a step again with other arrays, under its earlier checksums."""
    meta = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    before = meta.read_bytes()
    checkpoints = Checkpoints(workdir, "miou")
    state = jax.tree.map(np.array, _state(step))
    change(state)
    checkpoints.save(state, {"history": [step]}, {"miou": 0.8})
    checkpoints.close()
    meta.write_bytes(before)


def _in_variables(state):
    state.variables["params"]["fc8"]["kernel"][1, 2] += 1e-6


def _in_training(state):
    state.opt_state["trace"][0, 0] = 7


@pytest.mark.parametrize("change", [_in_variables, _in_training])
def test_going_back_from_a_damaged_value(change, tmp_path, capsys):
    _save(tmp_path, [0.1, 0.3, 0.8]).close()
    _rewrite(tmp_path, 3, change)
    checkpoints = Checkpoints(tmp_path, "miou")
    assert int(checkpoints.restore_latest(_state(0))[0].step) == 2
    checkpoints.close()
    assert "is not what was saved); going back" in capsys.readouterr().out
    expected = 2 if change is _in_variables else 3  # the variables alone are not damaged
    for score in (None, "miou"):
        variables = load_variables(tmp_path, score, None)["params"]
        jax.tree.map(np.testing.assert_array_equal, variables, _state(expected).variables["params"])


def test_checkpoints_without_checksums(tmp_path):
    _save(tmp_path, [0.1, 0.3]).close()
    _rewrite(tmp_path, 2, lambda state: state.variables["params"]["fc8"]["kernel"].fill(np.nan))
    for step in (1, 2):
        meta = tmp_path / "checkpoints" / str(step) / "meta" / "metadata"
        meta.write_text(json.dumps({"history": json.loads(meta.read_bytes())["history"]}))
    checkpoints = Checkpoints(tmp_path, "miou")
    assert int(checkpoints.restore_latest(_state(0))[0].step) == 1
    checkpoints.close()
    variables = load_variables(tmp_path, "miou", None)["params"]
    jax.tree.map(np.testing.assert_array_equal, variables, _state(1).variables["params"])


@pytest.mark.parametrize("meta", ["", "null", "[]", "{}", '{"history": 3}'])
def test_going_back_from_a_damaged_position(meta, tmp_path):
    _save(tmp_path, [0.1, 0.8]).close()
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text(meta)
    checkpoints = Checkpoints(tmp_path, "miou")
    assert int(checkpoints.restore_latest(_state(0))[0].step) == 1
    checkpoints.close()


def test_the_rest_of_an_interrupted_deletion_is_removed(tmp_path):
    _save(tmp_path, [0.1, 0.8, 0.3]).close()
    old = tmp_path / "checkpoints" / "1"
    (old / "variables").mkdir(parents=True)
    Checkpoints(tmp_path, "miou", read_only=True).close()
    assert old.is_dir()
    Checkpoints(tmp_path, "miou").close()
    assert _steps(tmp_path) == ["2", "3"]


def test_steps_are_listed_while_training_deletes_old_ones(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "500" / "meta").mkdir(parents=True)

    def make_and_delete():
        for step in range(400):
            (folder / str(step) / "meta").mkdir(parents=True)
            shutil.rmtree(folder / str(step))

    training = threading.Thread(target=make_and_delete)
    training.start()
    while training.is_alive():
        assert 500 in list_steps(tmp_path)
    training.join()
    assert list_steps(tmp_path) == [500]


def test_other_files_are_left_alone(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    (folder / "3").mkdir(parents=True)
    (folder / "12345").mkdir()
    (folder / "12345" / "notes.txt").write_text("theirs")
    (folder / "4").write_text("theirs")
    assert not has_checkpoint(tmp_path)
    with pytest.raises(InputError, match="no checkpoint there; train that phase first"):
        load_variables(tmp_path, None)
    _save(tmp_path, [0.1, 0.2, 0.3, 0.8, 0.3]).close()
    assert "12345 is not a complete checkpoint" in capsys.readouterr().out
    checkpoints = Checkpoints(tmp_path, "miou")
    assert int(checkpoints.restore_latest(_state(0))[0].step) == 5 and checkpoints.find_best() == 4
    checkpoints.close()
    assert (folder / "12345" / "notes.txt").read_text() == "theirs"
    (moved,) = folder.glob("no_checkpoint_4_*")
    assert moved.read_text() == "theirs"


def test_a_run_that_was_not_validated_yet(tmp_path):
    checkpoints = Checkpoints(tmp_path, "miou")
    checkpoints.save(_state(1), {"history": []}, None)
    checkpoints.close()
    with pytest.raises(
        InputError, match=r"no checkpoint was validated yet, .* at the end .*: continue"
    ):
        load_variables(tmp_path, "miou", _state(0).variables)


def test_a_full_disk_leaves_the_checkpoints_as_they_were(tmp_path):
    checkpoints = _save(tmp_path, [0.1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = _state(2, features=10_000)
    noise = np.random.default_rng(0).normal(size=(2, 10_000)).astype(np.float32)  # incompressible
    big.variables["params"]["fc8"]["kernel"] = jnp.asarray(noise)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"step 2 could not be written .*free some space"):
            checkpoints.save(big, {}, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    checkpoints.close()
    again = Checkpoints(tmp_path, "miou")
    assert int(again.restore_latest(_state(0))[0].step) == 1
    again.close()


def test_variables_alone(tmp_path):
    _save(tmp_path, [0.1, 0.8, 0.3]).close()
    like = jax.eval_shape(lambda: _state(0).variables)
    for score, step in (("miou", 2), (None, 3)):
        variables = load_variables(tmp_path, score, like)
        jax.tree.map(np.testing.assert_array_equal, variables, _state(step).variables)


def test_another_shape_is_named(tmp_path):
    _save(tmp_path, [0.1]).close()
    with pytest.raises(
        InputError, match=r"params/fc8/kernel has the shape \(2, 3\) .* \(2, 5\) in this network"
    ):
        load_variables(tmp_path, None, _state(0, features=5).variables)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no checkpoint there; train that phase first"):
        load_variables(tmp_path, None, _state(0).variables)
    assert not list(tmp_path.iterdir())


def test_a_signal_waits_until_a_checkpoint_is_read(tmp_path, monkeypatch):
    """Threads that read it print errors if the event loop that they report to is gone."""
    with contextlib.closing(_save(tmp_path, [0.1])):
        pass
    check_arrays, read = checkpoint_files.check_arrays, []

    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        check_arrays(*arguments)
        read.append(True)

    monkeypatch.setattr(checkpoint_files, "check_arrays", interrupt)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    try:
        with pytest.raises(SystemExit, match="75"):
            load_variables(tmp_path, "miou")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert read
