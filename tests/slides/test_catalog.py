"""Finding the slides of a job, naming them, and identifying their content."""

import json
import os
import struct
import sys
import unicodedata
from pathlib import Path

import pytest

from data.synthetic_slides import draw_waves
from tests.slides.dicom_writer import write_dicom
from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading import catalog, dicom
from wsss_jax.slides.reading.slide import open_slide

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
APPLE_DOUBLE = bytes.fromhex("0005160700020000") + b"Mac OS X        " + b"\0" * 4072


def _write_header(
    path: Path,
    series: str,
    kind: str = SLIDE,
    syntax: str = EXPLICIT,
    frame: int = 256,
    table: tuple[int, ...] = (),
) -> None:
    """Writes the beginning of a DICOM file, with another series in a sequence before its own."""

    def element(group: int, number: int, vr: bytes, data: bytes) -> bytes:
        data += b"\0" * (len(data) % 2)
        if syntax == IMPLICIT and group > 2:
            return struct.pack("<HHI", group, number, len(data)) + data
        return struct.pack("<HH2sH", group, number, vr, len(data)) + data

    def text(group: int, number: int, value: str) -> bytes:
        return element(group, number, b"UI", value.encode())

    other = text(0x0020, 0x000E, "9.9.9")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(other)) + other
    if syntax == IMPLICIT:
        sequence = struct.pack("<HHI", 0x0008, 0x1115, 0xFFFFFFFF)
    else:
        sequence = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    size = struct.pack("<H", frame)
    parts = [
        text(0x0002, 0x0010, syntax),
        text(0x0008, 0x0016, kind),
        sequence + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        text(0x0020, 0x000E, series),
        element(0x0028, 0x0010, b"US", size),
        element(0x0028, 0x0011, b"US", size),
    ]
    if table:
        parts.append(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
        parts.append(struct.pack("<HHI", 0xFFFE, 0xE000, 4 * len(table)))
        parts.append(struct.pack(f"<{len(table)}I", *table))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + b"".join(parts))


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder inside `tmp_path`, so that searches beside it find nothing else."""
    (tmp_path / "f").mkdir()
    return tmp_path / "f"


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_files_of_a_series_are_one_slide(folder, syntax):
    for name, series in (("0.dcm", "1.1"), ("1.DCM", "1.1"), ("2.dcm", "1.2")):
        _write_header(folder / name, series, syntax=syntax)
    _write_header(folder / "annotations.dcm", "1.3", "1.2.840.10008.5.1.4.1.1.66.4", syntax)
    files = dicom.group_files(folder)
    assert [[path.name for path in paths] for paths in files.slides] == [
        ["0.dcm", "1.DCM"],
        ["2.dcm"],
    ]
    assert [path.name for path in files.other] == ["annotations.dcm"] and not files.unreadable
    assert dicom.find_slide_files(folder / "1.DCM") == files.slides[0]
    assert dicom.read_series(folder / "2.dcm") == "1.2"


def _find(text: str, root: Path) -> list[str]:
    paths = catalog.find_slides(text.replace("ROOT", str(root)), results.is_result_folder)
    return [str(path.relative_to(root)) for path in paths]


def test_dicom_is_found_beside_other_slides(folder):
    _touch(folder, "mixed/one.svs", "mixed/two.svs")
    _write_header(folder / "mixed/three.dcm", "1.1")
    mixed = ["mixed/one.svs", "mixed/three.dcm", "mixed/two.svs"]
    assert _find("ROOT/mixed", folder) == mixed
    # A folder of one series is one slide, of several as many, hidden files are none.
    for name in ("one/0.dcm", "one/1.dcm"):
        _write_header(folder / name, "1.2")
    (folder / "one/._0.dcm").write_bytes(APPLE_DOUBLE)
    for name, series in (("two/a.dcm", "1.3"), ("two/b.dcm", "1.3"), ("two/c.dcm", "1.4")):
        _write_header(folder / name, series)
    assert _find("ROOT/one", folder) == ["one"]
    assert _find("ROOT/two", folder) == ["two/a.dcm", "two/c.dcm"]
    _touch(folder, "x.svs", "._x.svs", "empty/note.txt", "hidden/._0.dcm")
    inside = ["one", "two/a.dcm", "two/c.dcm", "x.svs"]
    assert _find("ROOT", folder) == sorted([*inside, *mixed])
    assert _find("ROOT/two/*.dcm", folder) == ["two/a.dcm", "two/c.dcm"]
    assert _find("ROOT/one/0.dcm,ROOT/one/1.dcm", folder) == ["one/0.dcm"]
    assert _find("ROOT/[ox]*", folder) == ["one", "x.svs"]
    assert _find("ROOT/m*", folder) == mixed
    assert _find("ROOT/on**", folder) == _find("ROOT/one,ROOT/one/1.dcm", folder) == ["one"]
    with pytest.raises(InputError, match=r"mixed: a folder with other slides .*\(one\.svs\); name"):
        open_slide(folder / "mixed")


def test_hidden_files_are_not_slides(folder):
    _touch(folder, "a.svs", "._a.svs", ".b.svs")
    assert _find("ROOT/*", folder) == _find("ROOT", folder) == ["a.svs"]
    with pytest.raises(InputError, match="there is no "):
        catalog.find_slides(str(folder / "._*"), results.is_result_folder)


def test_fingerprints_skip_hidden_files_and_cover_a_whole_series(folder):
    for name in ("0.dcm", "1.dcm"):
        _write_header(folder / "d" / name, "1.1")
    whole = catalog.fingerprint(folder / "d")
    assert whole == catalog.fingerprint(folder / "d/1.dcm")
    (folder / "d/._0.dcm").write_bytes(APPLE_DOUBLE)
    os.mkfifo(folder / "d/pipe")
    assert whole == catalog.fingerprint(folder / "d") == catalog.fingerprint(folder / "d/1.dcm")
    (folder / "m").mkdir()
    for name in ("m.mrxs", "m/Data0000.dat", "m/._Data0000.dat"):
        (folder / name).write_bytes(b"x" * 9)
    assert catalog.fingerprint(folder / "m.mrxs")["bytes"] == 18


def test_files_that_a_key_file_names_are_not_slides(folder):
    (folder / "s.vms").write_text("[Virtual Microscope Specimen]\nImageFile=s-0.jpg\nMapFile=\n")
    _touch(folder, "s-0.jpg", "other.jpg")
    assert _find("ROOT", folder) == ["other.jpg", "s.vms"]
    assert [path.name for path in catalog.list_members(folder / "s.vms")] == ["s.vms", "s-0.jpg"]


def test_names_that_file_systems_do_not_distinguish(folder):
    composed, decomposed = (unicodedata.normalize(form, "Schäfer") for form in ("NFC", "NFD"))
    paths = [Path("a.svs"), Path("A.tif"), Path(f"{composed}.svs"), Path(f"{decomposed}.tif")]
    names = [file.name for file in catalog.name_slides(paths, 0.0, {})]
    assert names == [path.name for path in paths]


def test_a_slide_under_several_names_is_taken_once(folder, monkeypatch, capsys):
    _touch(folder, "a.svs")
    (folder / "loop").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert catalog.find_slides(
        f"a.svs,{folder}/*.svs,./a.svs,**/*.svs", results.is_result_folder
    ) == [Path("a.svs")]
    assert "loop/a.svs is a.svs" in capsys.readouterr().out


def test_a_line_of_the_mpp_table_fits_one_slide(folder):
    paths = [folder / name for name in ("x/a.svs", "y/a.svs", "y/b.svs")]
    for key in ("a.svs", "a"):
        with pytest.raises(InputError, match=rf"{key} could be .*x/a\.svs or .*y/a\.svs; give"):
            catalog.name_slides(paths, 0.0, {key: 0.5})
    with pytest.raises(
        InputError, match=r"b and b\.svs are both for .*b\.svs and differ; keep one"
    ):
        catalog.name_slides(paths, 0.0, {"b.svs": 0.5, "b": 0.25})
    own = {"x_a.svs": 0.5, "y_a.svs": 0.25, "b": 1.0, "b.svs": 1.0}
    assert [file.mpp for file in catalog.name_slides(paths, 0.0, own)] == [0.5, 0.25, 1.0]
    decomposed = unicodedata.normalize("NFD", "Schäfer")
    (file,) = catalog.name_slides([folder / "Schäfer.svs"], 0.0, {decomposed: 0.5})
    assert file.mpp == 0.5


def test_a_folder_of_several_slides_does_not_open(folder):
    for name, series in (("a.dcm", "1.3"), ("b.dcm", "1.3"), ("c.dcm", "1.4")):
        _write_header(folder / name, series)
    with pytest.raises(InputError, match=r"2 slides in one folder \(a\.dcm, c\.dcm\); name one"):
        open_slide(folder)


def test_pipes_in_a_folder_of_dicom_are_not_opened(folder):
    _write_header(folder / "a.dcm", "1.3")
    os.mkfifo(folder / "notes")
    for path in (folder, folder / "a.dcm"):
        with pytest.raises(InputError, match=r"notes: a named pipe, not a file"):
            open_slide(path)


def test_frames_that_would_end_the_process_are_refused(folder):
    _write_header(folder / "a.dcm", "1.3", frame=65535)
    with pytest.raises(InputError, match=r"a\.dcm: frames of 65535 x 65535 pixels, .*too much"):
        open_slide(folder)
    for table in ((0, 9, 5), (0, 5, 2**31), (7, 7)):
        _write_header(folder / "a.dcm", "1.3", table=table)
        with pytest.raises(InputError, match=r"a\.dcm: its table of frames is damaged; copy"):
            open_slide(folder)
    _write_header(folder / "a.dcm", "1.3", table=(0, 5, 9))
    with pytest.raises(InputError, match=r"OpenSlide cannot read|not a whole DICOM slide"):
        open_slide(folder)


def test_hidden_files_beside_dicom_are_skipped(folder, monkeypatch):
    pytest.importorskip("pydicom")
    image = draw_waves(300, 280)
    write_dicom(folder / "d", [image, image[::2, ::2]], 0.5)
    for name in ("._level0.dcm", "._level1.dcm"):
        (folder / "d" / name).write_bytes(APPLE_DOUBLE)
    monkeypatch.setitem(sys.modules, "wsidicom", None)
    slide = open_slide(folder / "d")
    assert [(level.width, level.height) for level in slide.levels] == [(300, 280), (150, 140)]
    assert slide.warnings == ()
    (folder / "d" / "a.dcm").write_bytes(b"broken")
    assert "no DICOM are left out: a.dcm" in open_slide(folder / "d").warnings[0]


def test_fingerprints_cover_the_middle_of_files(folder):
    for size, change in ((3 << 20, 1), (5 << 30, 128 << 20)):
        path = folder / "a.svs"
        with path.open("wb") as file:
            file.truncate(size)
        before = catalog.fingerprint(path)
        with path.open("r+b") as file:  # the 5 GB stay a file with a hole
            for place in range(size // 2, size // 2 + change, 1 << 16):
                file.seek(place)
                file.write(b"x" * min(change, 1 << 10))
        after = catalog.fingerprint(path)
        assert before["bytes"] == after["bytes"] == size and before != after


def test_results_are_not_slides(folder, capsys):
    _touch(folder, "a.svs", "maps/x/label_map.ome.tif", "maps/y/small.jpg", "maps/z/own.svs")
    _touch(folder, "maps/config.json", "maps/dataset.json", "maps/index.html")
    (folder / "maps/y/parts").mkdir()
    (folder / "maps/y/parts/settings.json").write_text("{}")
    summary = {
        "settings": {"map": {}, "output": {}},
        **{"files": [], "tiles": 1, "tissue_pixels": 1, "areas": [], "ratios": {}},
        **{"warnings": [], "name": "a", "file": "a.svs"},
    }
    (folder / "maps/x/slide.json").write_text(json.dumps(summary))
    (folder / "maps/z/slide.json").write_text("[]")  # of another program
    assert _find("ROOT/**/*.*", folder) == ["a.svs", "maps/z/own.svs", "maps/z/slide.json"]
    assert "skipped: 7 paths in folders of results" in capsys.readouterr().out
    with pytest.raises(InputError, match="names only results of this program: name"):
        catalog.find_slides(str(folder / "maps/x"), results.is_result_folder)
    assert _find("ROOT/[am]*,ROOT/maps/*", folder) == ["a.svs", "maps/z"]
    assert _find("ROOT/maps/x/label_map.ome.tif", folder) == ["maps/x/label_map.ome.tif"]


def test_names_with_checksums_are_short_enough(folder):
    paths = [folder / parent / ("ä" * 120 + ".svs") for parent in ("patient1", "patient2")]
    names = [file.name for file in catalog.name_slides(paths, 0.0, {})]
    assert len(set(names)) == 2 and max(len(name.encode()) for name in names) <= 200
