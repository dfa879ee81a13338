"""data/dataset.py: descriptions, labels in file names, labels from masks."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest

from data.dataset import (
    SHIPPED,
    derive_label,
    format_label,
    load_dataset,
    parse_label,
    save_dataset,
)
from wsss_jax.errors import InputError

FIELDS = {
    "name": "mine",
    "classes": ["a", "b"],
    "palette": [[1, 2, 3], [4, 5, 6], [255, 255, 255]],
    "white": False,
    "label_notation": "commas",
    "present_share": 0.25,
}


def write(folder, fields):
    path = folder / "dataset.json"
    path.write_text(json.dumps(fields))
    return path


def test_shipped_descriptions_load():
    for path in SHIPPED.glob("*.json"):
        load_dataset(path.stem, "")
    luad = load_dataset("luad_histoseg", "")
    assert luad.classes == ("TE", "NEC", "LYM", "TAS") and luad.white
    assert luad.num_classes == luad.excluded == 4
    assert luad.palette[3] == (255, 165, 0) and luad.mpp == 1.0
    bcss = load_dataset("bcss_wsss", "")
    assert bcss.classes == ("TUM", "STR", "LYM", "NEC") and not bcss.white
    assert bcss.roles == {"tumor": "TUM", "stroma": "STR", "lymphocytes": "LYM"}
    assert load_dataset("wsss4luad", "").num_classes == 3


def test_root_and_path_give_the_same(tmp_path):
    path = write(tmp_path, FIELDS)
    dataset = load_dataset("", tmp_path)
    assert dataset == load_dataset(str(path), "elsewhere")
    assert dataset.palette == ((1, 2, 3), (4, 5, 6), (255, 255, 255))
    assert dataset.roles == {}
    for roles in ({}, {"stroma": "b"}):
        with_roles = dataclasses.replace(dataset, roles=roles)
        save_dataset(with_roles, tmp_path / "copy.json")
        assert load_dataset(str(tmp_path / "copy.json"), "") == with_roles


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "field 'colour' is unknown; the fields are name, classes"),
        ({"white": None}, "field 'white' is None; give true or false"),
        ({"white": 1}, "field 'white' is 1"),
        ({"name": ""}, "field 'name'"),
        ({"classes": ["a"]}, "field 'classes' must be a list of 2 to 255"),
        ({"classes": ["a", 3]}, "has 3 as class 1"),
        ({"classes": ["a", "a"]}, "has 'a' twice"),
        ({"classes": ["a", " "]}, "has ' ' as class 1; give a text"),
        ({"classes": ["a", "b\nc"]}, r"has 'b\nc' as class 1; leave out characters that do not"),
        ({"classes": ["a", "\x1b[2J"]}, r"has '\x1b[2J' as class 1; leave out characters"),
        ({"classes": ["a", "\u202eb"]}, r"has '\u202eb' as class 1; leave out characters"),
        ({"classes": ["a", "\ud800"]}, r"has '\ud800' as class 1; leave out characters"),
        ({"classes": ["a", 101 * "b"]}, "as class 1; give at most 100 characters"),
        ({"name": "mine\n"}, r"is 'mine\n'; leave out characters"),
        ({"name": 101 * "b"}, "give at most 100 characters"),
        ({"palette": [[1, 2, 3], [4, 5, 6]]}, "must be a list of 3 colors"),
        ({"palette": [[1, 2, 3], [4, 5, 256], [0, 0, 0]]}, "color 1; give [R, G, B]"),
        ({"palette": [[1, 2, 3], [1, 2, 3], [0, 0, 0]]}, "has the color [1, 2, 3] twice"),
        ({"label_notation": "dots"}, "give one of spaces, commas, compact"),
        ({"label_notation": ["spaces"]}, "field 'label_notation'"),
        ({"present_share": 1}, "field 'present_share' is 1"),
        ({"present_share": True}, "field 'present_share' is True"),
        ({"mpp": 0}, "field 'mpp' is 0; give micrometers per pixel"),
        ({"mpp": "0.5"}, "field 'mpp' is '0.5'"),
        ({"mpp": 1e300}, "field 'mpp' is 1e+300"),
        ({"mpp": 10**400}, "field 'mpp' is 1000"),
        ({"roles": ["a"]}, "field 'roles' is ['a']; give an object"),
        ({"roles": {"fat": "a"}}, "has 'fat'; the roles are tumor, stroma, lymphocytes"),
        ({"roles": {"tumor": "c"}}, "has 'c' as tumor; give one of a, b"),
        ({"roles": {"tumor": "a", "stroma": "a"}}, "has 'a' twice; give each role its own class"),
    ],
)
def test_impossible_field(tmp_path, change, message):
    path = write(tmp_path, FIELDS | change)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_dataset("", tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{\0}\0", "not JSON"),  # UTF-16
        (b'{"name": "\xe4"}', "not JSON"),  # Latin-1
        (50_000 * b"[", "not JSON"),
        (50_000 * b'{"a":', "not JSON"),
        (b'{"mpp": NaN}', "NaN is not a number"),
        (b'{"palette": [[1, 2, -Infinity]]}', "-Infinity is not a number"),
        (b'{"mpp": ' + 5000 * b"1" + b"}", "not JSON"),
        (b'{"white": true, "white": false}', "'white' occurs twice"),
        (b'{"roles": {"tumor": "a", "tumor": "b"}}', "'tumor' occurs twice"),
        (b'"text"', "not a JSON object"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_not_a_description(tmp_path, text, message):
    (tmp_path / "dataset.json").write_bytes(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_dataset("", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "dataset.json"))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(FIELDS), encoding="utf-8-sig")
    assert load_dataset("", tmp_path).classes == ("a", "b")


def test_a_description_that_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(InputError, match=r"dataset\.json: a named pipe, not a file"):
        load_dataset("", tmp_path)
    with pytest.raises(InputError, match="a folder, not a file"):
        load_dataset(str(tmp_path), "")


@pytest.mark.parametrize(
    "name", ["Tumor, epithelium", "\u817a\u764c", "t\u00e4 \u3000x", "a" * 100]
)
def test_names_of_any_language(tmp_path, name):
    write(tmp_path, FIELDS | {"classes": [name, "b"]})
    assert load_dataset("", tmp_path).classes == (name, "b")


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field(tmp_path, field):
    write(tmp_path, {key: value for key, value in FIELDS.items() if key != field})
    with pytest.raises(InputError, match=f"field '{field}' is missing"):
        load_dataset("", tmp_path)


def test_no_description(tmp_path):
    with pytest.raises(InputError, match=r"no such data set description.*luad_histoseg"):
        load_dataset("", tmp_path)
    with pytest.raises(InputError, match="no such data set description"):
        load_dataset("luad", tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_dataset("", tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        load_dataset("", tmp_path)


@pytest.mark.parametrize(
    ("spec", "filename", "label"),
    [
        ("luad_histoseg", "1031280-11872-27392-[1 0 0 1].png", (1, 0, 0, 1)),
        ("wsss4luad", "1031280-1-2-[1, 1, 0].png", (1, 1, 0)),
        ("bcss_wsss", "TCGA-A1-DX1_xmin45749_ymin25055_MPP-0.2500+12[1101].png", (1, 1, 0, 1)),
    ],
)
def test_labels_of_the_three_data_sets(spec, filename, label):
    dataset = load_dataset(spec, "")
    assert parse_label(filename, dataset) == label
    assert filename.endswith(format_label(label, dataset) + ".png")


@pytest.mark.parametrize(
    ("spec", "filename", "message"),
    [
        ("luad_histoseg", "a-[1 0 1].png", "3 values but LUAD-HistoSeg has 4 classes"),
        ("luad_histoseg", "a.png", "no label at the end of the name"),
        ("luad_histoseg", "a-[1 0 0 2].png", "no label at the end of the name"),
        ("luad_histoseg", "a+1[1101].png", "set label_notation to 'compact'"),
        ("luad_histoseg", "a-[1, 0, 0, 1].png", "set label_notation to 'commas'"),
        ("bcss_wsss", "a-[1 0 0 1].png", "set label_notation to 'spaces'"),
    ],
)
def test_unreadable_label(spec, filename, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        parse_label(filename, load_dataset(spec, ""))
    assert filename in str(caught.value)


def test_format_label_refuses_other_values():
    for label in [(1, 0), (1, 0, 0, 2)]:
        with pytest.raises(ValueError, match="4 values"):
            format_label(label, load_dataset("luad_histoseg", ""))


def test_derive_label_counts_all_pixels():
    dataset = dataclasses.replace(load_dataset("luad_histoseg", ""), present_share=0.05)
    mask = np.full((10, 10), 4, np.uint8)
    mask[0, :5] = 1  # exactly 5 %
    mask[1, :4] = 2
    assert derive_label(mask, dataset).tolist() == [0, 1, 0, 0]
    any_pixel = dataclasses.replace(dataset, present_share=0.0)
    label = derive_label(mask, any_pixel)
    assert label.tolist() == [0, 1, 1, 0] and label.dtype == np.uint8
