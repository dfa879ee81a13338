import numpy as np
import pytest

from tests.golden import reference
from wsss_jax.errors import InputError
from wsss_jax.parity import golden


def test_what_is_saved_comes_back_as_a_sample(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "forward/b2": rng.normal(size=(2, 3, 20, 10)).astype(np.float32),
        "forward/logits": rng.normal(size=(2, 3)).astype(np.float32),
        "phase1_segmentation/0": rng.integers(0, 4, (20, 10), dtype=np.uint8),
        "train/losses": np.float32([3, 2, 1]),
    }
    inputs = golden.draw_inputs(1, 2, 3, (20, 10))
    state_dict = {"fc8.weight": np.ones((3, 4, 1, 1))}
    golden.save(tmp_path / "a", tensors, inputs, state_dict, "bfloat16")
    loaded = golden.load(tmp_path / "a", 1)
    assert loaded.precision == "bfloat16"
    assert loaded.tensors.keys() == tensors.keys() and loaded.inputs.keys() == inputs.keys()
    sample = loaded.tensors["forward/b2"]
    assert len(np.unique(sample.indices)) == 64 and sample.shape == (2, 3, 20, 10)
    np.testing.assert_array_equal(sample.values, tensors["forward/b2"].ravel()[sample.indices])
    assert sample.absmax == np.abs(tensors["forward/b2"]).max()
    for name in list(tensors)[1:]:
        assert loaded.tensors[name].indices is None
        np.testing.assert_array_equal(loaded.tensors[name].values, tensors[name])


@pytest.mark.parametrize("phase", [1, 2])
def test_the_same_entries_are_kept_as_in_the_recorded_files(phase, tmp_path):
    recorded = golden.load(reference.path(f"phase{phase}"), phase).tensors
    name, sample = next((n, r) for n, r in recorded.items() if r.indices is not None)
    golden.save(tmp_path / "a.npz", {name: np.ones(sample.shape)}, _inputs(phase), {}, "float32")
    ours = golden.load(tmp_path / "a.npz", phase).tensors[name]
    np.testing.assert_array_equal(ours.indices, sample.indices)


def _inputs(phase):
    return golden.draw_inputs(phase, 2, 4, (40, 50))


def test_drawn_inputs_are_always_the_same_and_hold_every_case():
    labels = _inputs(1)["labels"]
    assert labels.shape == (2, 4) and (labels.sum(axis=1) > 0).all()
    inputs = _inputs(2)
    targets = inputs["targets"]
    assert targets.shape == (3, 2, 40, 50) and set(np.unique(targets)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(targets[0] == 4, targets[1] == 4)
    closed = inputs["gate/probability"] <= 0.1
    assert closed.any() and not closed.all()
    np.testing.assert_array_equal(targets, _inputs(2)["targets"])


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(reference.path("phase1").read_bytes()[:5000])
    with pytest.raises(InputError, match=r"a\.npz: not a complete golden file"):
        golden.load(path, 1)
    with pytest.raises(InputError, match=r"phase1\.npz: has no 'targets'.*--config\.phase"):
        golden.load(reference.path("phase1"), 2)
    arrays = dict(reference.golden("phase1"))
    arrays["forward/b2/indices"] = arrays["forward/b2/indices"] + 10**9
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="forward/b2/indices do not fit"):
        golden.load(path, 1)
    del arrays["forward/b2/absmax"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="forward/b2/absmax is missing"):
        golden.load(path, 1)
