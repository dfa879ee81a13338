import importlib
import json
from pathlib import Path
from unittest import mock

import pytest

import wsss_jax
from configs import base, base_slides
from tests.conftest import tiny_phase1
from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.config_rules import NOTHING, added
from wsss_jax.errors import InputError
from wsss_jax.jobs import masks, prepare, train

CONFIGS = sorted(
    path.stem
    for path in Path(base.__file__).parent.glob("*.py")
    if path.stem != "__init__" and not path.stem.startswith("base")
)
NEEDED = {
    "convert": ["weights"],
    "export": ["run"],
    "compare": ["images", "weights"],
    "polygons": ["files"],
    "segment_slides": ["phase2", "slides"],
    "sample": ["out", "slides"],
    "recount": ["annotations", "map"],
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_config_is_valid_and_survives_json(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    for field in NEEDED.get(name, ()):  # without a default that could make sense
        with pytest.raises(InputError, match=rf"config\.{field} is ''"):
            config_lib.validate(config)
        config[field] = "given"
    config_lib.validate(config)
    config_lib.save(config, tmp_path)
    assert config_lib.load(tmp_path, "workdir").to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("batch_size", 0, "config.batch_size is 0: it must be an integer of at least 1"),
        ("precision", "float16", "one of 'float32', 'tensorfloat32', 'bfloat16'"),
        ("pda.schedule", "linear", "config.pda.schedule is 'linear'"),
        ("optimizer.learning_rate", -1.0, "a number over 0"),
        ("optimizer.lerning_rate", 1.0, "did you mean config.optimizer.learning_rate?"),
        ("augment.blur", 1.5, "at most 1"),
        ("model.dropout_rates", (0.5,), "a sequence of 3"),
    ],
)
def test_impossible_values_are_refused(path, value, words):
    config = base.phase1("luad_histoseg")
    section, _, field = path.rpartition(".")
    target = config[section] if section else config
    with target.unlocked():
        target[field] = value
    with pytest.raises(InputError, match=r"^config") as caught:
        config_lib.validate(config)
    assert words in str(caught.value)


def test_missing_field_and_unknown_job():
    config = base.phase1("luad_histoseg")
    del config.pda.decay
    with pytest.raises(InputError, match=r"config\.pda\.decay is missing"):
        config_lib.validate(config)
    config.job = "trane"
    with pytest.raises(InputError, match=r"config\.job is 'trane'"):
        config_lib.validate(config)


def test_slides_of_earlier_versions_are_resampled_as_they_were(tmp_path):
    config = base_slides.segment("slides", "", "run")
    del config.resampling, config.tissue["mask_area"]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    loaded = config_lib.load(tmp_path, "segment")
    assert loaded.resampling == "triangle" and loaded.tissue.mask_area == "slide"
    assert (
        base_slides.segment("slides", "", "run").resampling
        == base_slides.doctor().resampling
        == "area"
    )


def test_a_weight_for_each_layer():
    config = base.phase2("runs/masks")
    config.layer_weights = (0.5, 0.5)
    with pytest.raises(InputError, match="2 entries for the 3 of"):
        config_lib.validate(config)


def test_arguments():
    assert base.arguments("variant=reference", variant="paper") == {"variant": "reference"}
    with pytest.raises(ValueError, match="'dropuot=off' is not known"):
        base.arguments("dropuot=off", variant="paper", dropout="progressive")
    with pytest.raises(ValueError, match="variant=papre is not one of paper, reference"):
        base.arguments("variant=papre", variant="paper")


def test_the_variants_are_those_of_the_table():
    variants = ("paper", "reference")
    paper, reference = (base.phase1("luad_histoseg", variant) for variant in variants)
    assert config_lib.differences(paper, reference) == [
        "cam.relu: False / True",
        "pda.clip: True / False",
        "pda.decay: 0.985 / 0.98",
        "pda.divisor: 0 / 4",
        "pda.hold_epochs: 3 / 1",
        "pda.off_epochs: 0 / 3",
        "pda.relu: False / True",
    ]
    changed = config_lib.differences(*(base.phase2("m", variant) for variant in variants))
    assert [line.partition(":")[0] for line in changed] == [
        "augment.flip_vertical",
        "epochs",
        "layers",
        "loss.divide_by_batch",
        "loss.white",
        "model.mean",
        "model.std",
        "optimizer.head_multiplier",
        "optimizer.learning_rate",
    ]


@pytest.mark.parametrize("job", ["masks", "evaluate", "segment", "doctor"])
def test_runs_from_before_colors_and_precision_could_be_chosen_load(tmp_path, job):
    config = {
        "masks": base.masks("run"),
        "evaluate": base.evaluate("one", "two"),
        "segment": base_slides.segment("a.svs", "one", "two"),
        "doctor": base_slides.doctor(),
    }[job]
    earlier = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("palette", "precision")
    }
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert config_lib.differences(config_lib.load(tmp_path, "workdir"), config) == []


@pytest.mark.parametrize(("field", "value"), [("palette", "pretty"), ("precision", "float16")])
def test_colors_and_precision_are_checked(field, value):
    config = base_slides.segment("a.svs", "one", "two")
    config[field] = value
    with pytest.raises(InputError, match=rf"config\.{field} is '{value}': it must be one of"):
        config_lib.validate(config)


@pytest.mark.parametrize("value", [10**18, 10**400, -(10**18), 1e18, float("inf"), float("nan")])
def test_every_number_has_bounds(value):
    """A slip of the keyboard must not end in a crash, or take all memory."""
    for job in jobs.names():
        for field, rule in jobs.specification(job).FIELDS.items():
            for given in (value, *((value,) * length for length in (1, 2, 3, 4))):
                assert not rule.allows(given), f"{job}: {field}"
    assert not prepare.FIELDS["codes"].allows({"tumor": (value,)})


def test_texts_have_no_control_characters_and_an_end():
    config = base.phase1("luad_histoseg")
    for text in ("a\0b", "a\nb", "a\x7f", "a" * 5000):
        config.data.root = text
        with pytest.raises(InputError, match=r"config\.data\.root is .*a text of at most 4096"):
            config_lib.validate(config)


def test_a_sequence_has_an_end():
    config = base.masks("runs/phase1")
    config.layers = ("bn7",) * 300
    with pytest.raises(InputError, match=r"config\.layers is .* at most 256"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1, 2]",
        b"7",
        b"null",
        b'"phase1"',
        b"\xff\xfe{}",
        b'{"job": "phase1"',
        b"[" * 100_000,
        b'{"job": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"}",
        b'{"job": ["phase1"]}',
        b'{"job": "phase1", "data": 3}',
        b'{"job": "demo", "jobs": 3}',
        b'{"job": "demo", "jobs": {"phase1": 1, "masks": 1, "phase2": 1, "evaluate": 1}}',
        b'{"job": {}}',
        b'{"job": null}',
        b'{"a.b": 1}',
        b'{"job": "phase1", "": {"": 1}}',
        b'{"job": "phase1", "version": {}}',
    ],
)
def test_a_damaged_configuration_of_a_run_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        config_lib.load(tmp_path, "phase1")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_a_run_says_which_version_wrote_it(tmp_path):
    config = base.phase1("luad_histoseg")
    config_lib.save(config, tmp_path)
    assert config_lib.version(tmp_path, "phase1") == wsss_jax.__version__
    assert config_lib.load(tmp_path, "phase1").to_dict() == config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))  # as version 0.1 did
    assert config_lib.version(tmp_path, "phase1") == "0.1.0"
    assert config_lib.load(tmp_path, "phase1").to_dict() == config.to_dict()


def test_fields_that_came_later_do_what_was_done_without_them(tmp_path):
    for job in jobs.names():
        for field, rule in jobs.specification(job).FIELDS.items():
            assert rule.before is NOTHING or rule.allows(rule.before), f"{job}: {field}"
    config = base.masks("runs/phase1")
    before = config.to_dict()
    del before["absent"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    with pytest.raises(InputError, match="absent is missing"):
        config_lib.load(tmp_path, "workdir")
    with mock.patch.dict(masks.FIELDS, absent=added(masks.FIELDS["absent"], "zero")):
        assert config_lib.load(tmp_path, "workdir").absent == "zero"
        config_lib.save(config, tmp_path)
        assert config_lib.load(tmp_path, "workdir").absent == "excluded"


def test_a_job_completes_a_copy_and_nothing_writes_to_it(tissue_dir):
    config = tiny_phase1(tissue_dir)
    config.model.batch_norm = "auto"
    completed, _, _ = train.complete(config)
    assert config.model.batch_norm == "auto" and completed.model.batch_norm == "trained"
    for part, field in ((completed, "seed"), (completed.model, "width"), (completed.data, "root")):
        with pytest.raises(AttributeError, match="immutable"):
            part[field] = 1
