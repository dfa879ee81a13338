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


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = _save(tmp_path, [0.1, 0.8, 0.3, 0.2])
    assert (checkpoints.latest(), checkpoints.best()) == (4, 2)
    state, meta = checkpoints.restore(4, _state(0))
    jax.tree.map(np.testing.assert_array_equal, state, _state(4))
    assert meta == {"history": [4]}
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()) == ["2", "4"]


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
