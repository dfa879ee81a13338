import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsss_jax.checkpoints import Checkpoints, State, load_variables
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
    assert checkpoints.best() == 2
    state, meta = checkpoints.restore_latest(_state(0))
    jax.tree.map(np.testing.assert_array_equal, state, _state(5))
    assert meta == {"history": [5]}
    assert _steps(tmp_path) == ["2", "4", "5"]
    checkpoints.save(_state(6), {}, None)  # in the middle of an epoch, so without a score
    checkpoints.save(_state(7), {}, None)
    assert checkpoints.best() == 2 and _steps(tmp_path) == ["2", "6", "7"]
    checkpoints.close()


def _damage(workdir, step):
    for path in (workdir / "checkpoints" / str(step) / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_checkpoint_is_gone_back_from(tmp_path, capsys):
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
    with pytest.raises(InputError, match="no checkpoint there is whole"):
        checkpoints.restore_latest(_state(0))
    checkpoints.close()


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
