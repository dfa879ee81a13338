import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import SIZE
from wsss_jax import config as config_lib
from wsss_jax.errors import InputError
from wsss_jax.interop import stablehlo
from wsss_jax.training.trained import load_trained

PHASES = ("phase1", "phase2")
PLATFORMS = ("cpu", "cuda", "tpu")


@pytest.fixture(scope="module")
def trained(runs_dir):
    return {job: load_trained(str(runs_dir / job), "run", "") for job in PHASES}


@pytest.fixture(scope="module")
def patches(tissue_dir):
    """The paths of the five test patches."""
    return sorted((tissue_dir / "test" / "img").glob("*.png"))


@pytest.fixture(scope="module")
def images(patches):
    return np.stack([np.asarray(Image.open(path)) for path in patches])


def _save(trained, path, **changes):
    settings = {"precision": "float32", "platforms": PLATFORMS, "size": SIZE} | changes
    stablehlo.save(trained, path, **settings)


@pytest.fixture(scope="module")
def save_once(trained, tmp_path_factory):
    """Saves a job's program where none has asked for it yet; returns its path."""

    @cache
    def save(job, precision="float32"):
        path = tmp_path_factory.mktemp("programs") / f"{job}.stablehlo"
        _save(trained[job], path, precision=precision)
        return path

    return save


def _exact(trained, images):
    """Probability as float64 gives it."""
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), trained.variables)
        probability, _ = _live(trained._replace(variables=variables), images, "float64")
        return np.asarray(probability)


def _live(trained, images, precision="float32"):
    """Probability and segmentation that our own code computes."""
    config = config_lib.replace(trained.config, precision=precision)
    network = trained.method.build_network(config, trained.dataset.num_classes)
    predict = jax.jit(partial(trained.method.predict, config, network))
    prediction = predict(trained.variables, images)
    if prediction.presence is not None:
        return prediction.presence, prediction.label_maps
    return jax.nn.softmax(prediction.logits), prediction.label_maps


@pytest.mark.parametrize(
    ("job", "precision", "batches"),
    [
        ("phase1", "float32", (1, 5)),
        ("phase2", "float32", (5,)),
        ("phase2", "bfloat16", (5,)),
        pytest.param("phase2", "float32", (1,), marks=pytest.mark.long),
        pytest.param("phase1", "bfloat16", (5,), marks=pytest.mark.long),
    ],
)
def test_a_program_computes_what_the_network_does_in_batches_of_any_size(
    job, precision, batches, trained, images, save_once
):
    program = jax.export.deserialize(save_once(job, precision).read_bytes())
    assert program.platforms == PLATFORMS
    # In float64 the size of the batch makes no difference that float32 could show.
    exact = _exact(trained[job], images) if precision == "float32" else None
    for batch in batches:
        found = jax.jit(program.call)(images[:batch])
        probability, segmentation = _live(trained[job], images[:batch], precision)
        if precision == "float32":
            # Both round, each processor in its own way: the program may be no farther from what is
            # exact than what rounding makes of our own code, twice.
            rounding = np.abs(probability - exact[:batch]).max()
            assert rounding < 1e-5
            assert np.abs(found["probability"] - exact[:batch]).max() <= 2 * rounding
        else:
            np.testing.assert_allclose(found["probability"], probability, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found["segmentation"], segmentation)
        assert found["segmentation"].dtype == np.uint8


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bfloat16_program_holds_bfloat16_weights(precision, trained, save_once):
    size = save_once("phase1", precision).stat().st_size
    parameters = sum(x.size for x in jax.tree.leaves(trained["phase1"].variables["params"]))
    is_small = size < 3 * parameters
    assert is_small == (precision == "bfloat16")
    assert trained["phase1"].config.precision == "float32"


def test_a_script_without_our_code_segments_patches(trained, patches, images, save_once):
    program = save_once("phase2")
    script = Path(__file__).parents[1] / "docs" / "serve.py"
    # -I: neither the current folder nor PYTHONPATH is searched for modules.
    command = [sys.executable, "-I", script, program.name, *patches]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    segmentations = _live(trained["phase2"], images)[1]
    for line, path, labels in zip(done.stdout.splitlines(), patches, segmentations, strict=True):
        shares = [f"{index}:{(labels == index).mean():.4f}" for index in range(4)]
        assert line == " ".join([str(path), *shares])


@pytest.mark.parametrize("field, value", [("size", 0), ("platforms", ())])
def test_what_no_program_can_be_made_for_is_named(field, value, trained, tmp_path):
    path = tmp_path / "program"
    with pytest.raises(InputError, match=rf"^config\.{field} .*--config\.{field}.*\Z"):
        _save(trained["phase2"], path, **{field: value})
    assert not path.exists()
