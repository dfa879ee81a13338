"""Patients and their splits."""

from pathlib import Path

import pytest

from data.splits import SPLITS
from wsss_jax.errors import InputError
from wsss_jax.sampling.splits import Patient, assign_splits, find_patients, read_patients
from wsss_jax.slides.reading.catalog import SlideFile

SHARES = (0.7, 0.15, 0.15)
BARCODE = "TCGA-05-4244-01Z-00-DX1.d4ff32cd-38cf-40ea-8213-45c2b100ac01.svs"


def make_slides(*paths: str) -> list[SlideFile]:
    return [SlideFile(Path(path), Path(path).stem, None) for path in paths]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_barcodes_tell_patients():
    slides = make_slides(BARCODE, BARCODE.replace("DX1", "DX2"), "tcga-ab-1234-01.svs", "b.svs")
    patients = [each.patient for each in find_patients(slides, None).values()]
    assert patients == ["TCGA-05-4244", "TCGA-05-4244", "TCGA-AB-1234", "b"]


def test_a_table_tells_patients(tmp_path):
    text = "age,patient,slide,split\n61,P1,a,\n61,P1,b.svs,\n48,P2,c,test\n,P3,unused,\n"
    table = read_patients(write(tmp_path / "p.csv", text))
    found = find_patients(make_slides("x/a.svs", "x/b.svs", "x/c.svs"), table)
    assert found == {"a": Patient("P1"), "b": Patient("P1"), "c": Patient("P2", "test")}
    with pytest.raises(InputError, match=r"config\.patients: no line for x/d\.svs; add one"):
        find_patients(make_slides("x/d.svs"), table)
    same = [SlideFile(Path(f"{folder}/a.svs"), f"{folder}_a.svs", None) for folder in "xy"]
    with pytest.raises(InputError, match=r"a could be x/a\.svs or y/a\.svs; give a line for each"):
        find_patients(same, {"a": Patient("P1")})
    both = {"x_a.svs": Patient("P1"), "y_a.svs": Patient("P2"), "a": Patient("P3")}
    assert [each.patient for each in find_patients(same, both).values()] == ["P1", "P2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r":1: the first line names no columns slide and patient; add them"),
        ("slide,mpp\na,1\n", r":1: the first line names no columns"),
        ("slide,patient\na,\n", r":2: no slide or no patient; give both"),
        ("slide,patient\na\n", r":2: no slide or no patient"),
        ("slide,patient\na,P\na,Q\n", r":3: 'a' is given twice; keep one of the lines"),
        ("slide,patient,split\na,P,tset\n", r":2: the split 'tset'; write train, val or test"),
        ("slide,patient,split\na,P,val\nb,P,\n", r":3: the patient 'P' is in no split here and"),
        ("slide,patient\n\xff\n", r"not a CSV file .*; save it as UTF-8 text"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=words) as caught:
        read_patients(path)
    assert "\n" not in str(caught.value) and "p.csv" in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        read_patients(tmp_path / "none.csv")


def test_no_patient_is_in_two_splits_and_shares_are_held():
    patients = {f"s{n}": Patient(f"P{n // 2}") for n in range(200)}
    splits = assign_splits(patients, {}, SHARES, 0)
    for number in range(0, 200, 2):
        assert splits[f"s{number}"] == splits[f"s{number + 1}"]
    counts = [list(splits.values()).count(split) for split in SPLITS]
    assert counts == pytest.approx([140, 30, 30], abs=2)
    assert (
        assign_splits(patients, {}, SHARES, 0) == splits != assign_splits(patients, {}, SHARES, 1)
    )


def test_four_patients_fill_all_splits():
    patients = {name: Patient(name) for name in "abcd"}
    assert sorted(assign_splits(patients, {}, SHARES, 0).values()) == [
        *("test", "train", "train", "val")
    ]
    assert set(assign_splits(patients, {}, (1.0, 0.0, 0.0), 0).values()) == {"train"}


def test_patients_stay_in_their_split_when_slides_come_in():
    few = {f"s{n}": Patient(f"P{n}") for n in range(10)}
    earlier = assign_splits(few, {}, SHARES, 0)
    many = few | {f"t{n}": Patient(f"Q{n}") for n in range(90)} | {"again": Patient("P3")}
    later = assign_splits(many, earlier, SHARES, 0)
    assert {name: later[name] for name in few} == earlier and later["again"] == earlier["s3"]
    assert list(later.values()).count("train") == pytest.approx(70, abs=3)


def test_a_table_wins_and_joined_patients_go_together():
    earlier = {"a": "test", "b": "val", "c": "train"}
    table = {"a": Patient("P", "val"), "b": Patient("Q"), "c": Patient("R")}
    assert assign_splits(table, earlier, SHARES, 0) == {"a": "val", "b": "val", "c": "train"}
    joined = {name: Patient("P") for name in "ab"}
    assert assign_splits(joined, earlier, SHARES, 0) == {"a": "val", "b": "val"}
