import json

import pytest

from configs import base
from data.synthetic import DATASET
from tests.conftest import tiny_phase1
from wsss_jax import jobs, runs
from wsss_jax.errors import InputError


def test_save_and_load(tmp_path):
    config = base.masks("runs/phase1")
    runs.save(config, DATASET, tmp_path / "run")
    again, dataset = runs.load(tmp_path / "run", "masks", "masks")
    assert again.to_dict() == config.to_dict() and dataset == DATASET
    with pytest.raises(InputError, match="is a run of the job 'masks', not 'phase1'"):
        runs.load(tmp_path / "run", "phase1", "phase1")


def test_a_damaged_run_is_named(tmp_path):
    runs.save(base.masks("runs/phase1"), DATASET, tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    path.write_text(text[:40])
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        runs.load(tmp_path, "masks", "masks")
    fields = json.loads(text)
    del fields["layers"]
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"config.json: layers is missing"):
        runs.load(tmp_path, "masks", "masks")


def test_inherit_data():
    earlier = base.phase1("luad_histoseg").data
    data = base.masks("runs/phase1").data
    data.root = "elsewhere"
    runs.inherit_data(data, earlier)
    assert (data.root, data.dataset, data.patch_size) == ("elsewhere", "luad_histoseg", 224)


def test_what_may_change(tmp_path):
    config = base.phase1("luad_histoseg")
    runs.check(config, tmp_path, started=True)
    runs.save(config, DATASET, tmp_path)
    config.log_every, config.data.workers = 77, 5
    runs.check(config, tmp_path, started=True)
    config.seed = 7
    runs.check(config, tmp_path, started=False)
    with pytest.raises(InputError, match=r"other settings \(seed: 0 / 7\)"):
        runs.check(config, tmp_path, started=True)
    with pytest.raises(InputError, match="of the job 'phase1', this one is 'masks'"):
        runs.check(base.masks("x"), tmp_path, started=False)


def test_another_setting_is_no_continuation(runs_dir, tissue_dir):
    config = tiny_phase1(tissue_dir)
    config.epochs, config.seed = 1, 7
    with pytest.raises(InputError, match=r"other settings \(seed: 0 / 7\)"):
        jobs.train_phase1(config, runs_dir / "phase1")
