"""Weights from files to runs and back; what a run starts from."""

import json
import resource
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import base_tools
from tests.conftest import SIZE, tiny_phase1, tiny_phase2
from tests.interop.mxnet_writer import array_list, encode, mxnet_name
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.interop import torch_files, weights
from wsss_jax.interop.torch_names import to_torch
from wsss_jax.methods import phase1, phase2
from wsss_jax.training.initialization import initialize_variables
from wsss_jax.training.trained import load_trained

PHASES = ("phase1", "phase2")


@pytest.fixture(scope="module")
def exported(runs_dir, tmp_path_factory):
    """The files of both tiny runs."""
    folder = tmp_path_factory.mktemp("exported")
    for job in PHASES:
        config = base_tools.export(str(runs_dir / job))
        config.formats = ("pth", "safetensors", "orbax")
        config_lib.validate(config)
        jobs.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def trained(runs_dir):
    return {job: load_trained(str(runs_dir / job), "run", "") for job in PHASES}


def _convert_config(path, tissue_dir):
    config = base_tools.convert(str(tissue_dir / "dataset.json"))
    config.weights = str(path)
    config.jobs.phase1.model.update(tiny_phase1(tissue_dir).model)
    config.jobs.phase2.model.update(tiny_phase2("m").model)
    config_lib.validate(config)
    return config


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, dict(one), dict(other))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("job", PHASES)
def test_a_round_trip_is_exact_to_the_bit(job, suffix, exported, trained, tissue_dir, tmp_path):
    config = _convert_config(exported / f"{job}.{suffix}", tissue_dir)
    jobs.run(config, tmp_path / "run")
    back = load_trained(str(tmp_path / "run"), "run", "")
    _assert_same(back.variables, trained[job].variables)
    assert back.dataset == trained[job].dataset
    assert back.config.init == str(exported / f"{job}.{suffix}")


def test_the_orbax_checkpoint_is_one_that_orbax_reads(exported, trained):
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(exported / "phase2.orbax")
    _assert_same(restored, trained["phase2"].variables)


@pytest.mark.parametrize("job", PHASES)
def test_the_pytorch_networks_take_the_files_strictly(job, exported, trained, tmp_path):
    torch = pytest.importorskip("torch")
    from wsss_jax.parity import torch_networks

    kind = {"phase1": torch_networks.ResNet38, "phase2": torch_networks.DeepLabV3Plus}[job]
    blocks = {"blocks": trained[job].network.blocks} if job == "phase2" else {}
    model = kind(trained[job].dataset.num_classes, width=trained[job].network.width, **blocks)
    model.load_state_dict(torch.load(exported / f"{job}.pth", weights_only=True), strict=True)
    # And the other way round: what PyTorch saves, with counters, in an object, in parallel.
    for legacy in (False, True):
        path = tmp_path / "a.pth"
        state_dict = torch.nn.DataParallel(model).state_dict()
        torch.save(
            {"epoch": 3, "state_dict": state_dict, "best_pred": np.float64(0.5)},
            path,
            _use_new_zipfile_serialization=not legacy,
        )
        read = weights.read(path).arrays
        for name, value in to_torch(trained[job].variables).items():
            np.testing.assert_array_equal(read.pop(name), value)
        assert not read


def test_imagenet_weights_of_mxnet_keep_every_bit(trained, tissue_dir, tmp_path):
    state_dict = to_torch(trained["phase1"].variables)
    head = state_dict.pop("fc8.weight")
    arrays = {
        f"{'aux' if 'running' in name else 'arg'}:{mxnet_name(name)}": np.ascontiguousarray(value)
        for name, value in state_dict.items()
    } | {"arg:linear1000_weight": np.zeros((1000, 8), np.float32)}
    contents = array_list([encode("V2", a) for a in arrays.values()], [k.encode() for k in arrays])
    (tmp_path / "imagenet.params").write_bytes(contents)
    config = _convert_config(tmp_path / "imagenet.params", tissue_dir)
    jobs.run(config, tmp_path / "run")
    found = to_torch(load_trained(str(tmp_path / "run"), "run", "").variables)
    for name, value in state_dict.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["fc8.weight"].shape == head.shape and found["fc8.weight"].std() > 0
    report = (tmp_path / "run" / weights.REPORT_FILE).read_text()
    assert "initial fc8.weight" in report and "unused  linear1000_weight (1000, 8)" in report
    assert report.count("\nloaded ") == len(state_dict)


def test_a_file_to_start_training_from(exported, trained, tissue_dir, tmp_path):
    """Frozen as with a run: running statistics and the first blocks stay."""
    config = tiny_phase1(tissue_dir)
    config.init, config.model.batch_norm = str(exported / "phase1.pth"), "auto"
    config.epochs, config.optimizer.learning_rate = 1, 1e-6
    jobs.run(config, tmp_path / "run")
    after = load_trained(str(tmp_path / "run"), "run", "").variables
    before = trained["phase1"].variables
    _assert_same(after["batch_stats"], before["batch_stats"])
    _assert_same(after["params"]["b2"], before["params"]["b2"])
    assert not np.array_equal(after["params"]["fc8"]["kernel"], before["params"]["fc8"]["kernel"])
    assert "loaded" in (tmp_path / "run" / weights.REPORT_FILE).read_text()


def test_another_number_of_classes(exported, trained, tmp_path):
    """As with the 21 classes of the DeepLab weights that phase 2 starts from."""
    config = tiny_phase2("m")
    config.init = str(exported / "phase2.pth")
    model = phase2.build_network(config, 7)
    with pytest.raises(InputError, match=r"decoder\.last_conv\.8\.bias .*strict=False"):
        initialize_variables(config, model)
    config.strict = False
    variables, report = initialize_variables(config, model)
    assert {name for name, _, _ in report.initial} == {
        "decoder.last_conv.8.weight",
        "decoder.last_conv.8.bias",
    }
    assert variables["params"]["decoder"]["last_conv_8"]["kernel"].shape[-1] == 7
    _assert_same(variables["params"]["backbone"], trained["phase2"].variables["params"]["backbone"])
    again, _ = initialize_variables(config, model)
    _assert_same(again, variables)


def test_what_cannot_be_converted(exported, tissue_dir, runs_dir, tmp_path):
    config = _convert_config(exported / "phase1.pth", tissue_dir)
    with pytest.raises(InputError, match="already holds a trained network"):
        jobs.run(config, runs_dir / "phase1")
    description = json.loads((tissue_dir / "dataset.json").read_text())
    description["classes"].pop()
    description["palette"].pop()
    (tmp_path / "three.json").write_text(json.dumps(description))
    config.jobs.phase1.data.dataset = str(tmp_path / "three.json")
    with pytest.raises(InputError, match=r"fc8\.weight \(3, .*of the shape \(4, "):
        jobs.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_converted_run_is_not_trained_on_in_its_place(exported, tissue_dir, tmp_path):
    config = _convert_config(exported / "phase1.pth", tissue_dir)
    config.jobs.phase1.data.update({"root": str(tissue_dir), "patch_size": SIZE, "workers": 0})
    config.jobs.phase1.batch_size = 4
    jobs.run(config, tmp_path / "run")
    config = config_lib.load(tmp_path / "run", "workdir")
    with pytest.raises(InputError, match=r"--config\.init"):
        jobs.run(config, tmp_path / "run")


def test_weights_of_the_other_phase(exported, tissue_dir, tmp_path):
    config = tiny_phase1(tissue_dir)
    config.init = str(exported / "phase2.pth")
    with pytest.raises(InputError, match=r"phase2\.pth: these are weights of phase2"):
        initialize_variables(config, phase1.build_network(config, 4))


def test_an_export_takes_the_place_of_the_one_before(runs_dir, trained, tmp_path):
    for _ in range(2):
        config = base_tools.export(str(runs_dir / "phase1"))
        config.formats = ("orbax", "safetensors")
        jobs.run(config, tmp_path)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "phase1.orbax")
    _assert_same(restored, trained["phase1"].variables)
    names = ["config.json", "exported.json", "phase1.orbax", "phase1.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_an_export_overwrites_nothing_that_is_not_its_own(runs_dir, tmp_path):
    config = base_tools.export(str(runs_dir / "phase1"))
    config.formats = ("orbax",)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "phase1.pth").write_text("theirs")
    with pytest.raises(InputError, match=r"theirs holds no run .* such as phase1\.pth"):
        jobs.run(config, theirs)

    ours = tmp_path / "ours"
    (ours / "phase1.orbax").mkdir(parents=True)
    (ours / "phase1.orbax" / "notes.txt").write_text("theirs")
    config_lib.save(config, ours)
    with pytest.raises(InputError, match=r"phase1\.orbax is no Orbax checkpoint: move it"):
        jobs.run(config, ours)
    assert (ours / "phase1.orbax" / "notes.txt").read_text() == "theirs"

    shutil.rmtree(ours / "phase1.orbax")
    jobs.run(config, ours)
    other = tmp_path / "other"
    other.symlink_to(runs_dir / "phase1")  # the same run by another name
    config.run = str(other)
    jobs.run(config, ours)
    (ours / "exported.json").write_text('{"phase1": "/some/other/run"}')
    with pytest.raises(InputError, match="exported of the run /some/other/run, this one is"):
        jobs.run(config, ours)


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    exported, runs_dir, tissue_dir, tmp_path
):
    (tmp_path / "file").touch()
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is a file, not a folder"):
            jobs.run(base_tools.export(str(runs_dir / "phase1")), workdir)
        with pytest.raises(InputError, match="file is a file, not a folder"):
            jobs.run(_convert_config(exported / "phase1.pth", tissue_dir), workdir)


def test_a_disk_without_room_for_safetensors(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match=r"w\.safetensors: could not be written .*free some"):
            weights.save_safetensors({"a": np.zeros(1000)}, tmp_path / "w.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_only_trained_phases_are_exported(runs_dir, tmp_path):
    config = base_tools.export(str(runs_dir / "masks"))
    with pytest.raises(InputError, match="is a run of the job 'masks'"):
        jobs.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_pth_holds_what_pytorch_calls_the_parameters(exported, trained):
    arrays = torch_files.load(exported / "phase1.pth")
    assert set(arrays) == set(to_torch(trained["phase1"].variables))
    assert arrays["fc8.weight"].shape[2:] == (1, 1) and arrays["b2.conv_branch2a.weight"].ndim == 4
