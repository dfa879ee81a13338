"""Named pipes among the files of a slide are not opened."""

import os
from pathlib import Path

import pytest

from wsss_jax.errors import InputError
from wsss_jax.slides.reading.slide import open_slide

KEYS = (
    "NoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile={0}\nMapFile={0}\nOptimisationFile=\n"
    "PhysicalWidth=1000\nPhysicalHeight=1000\n"
)


@pytest.fixture(autouse=True)
def _no_openslide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test, instead of waiting forever, if OpenSlide is asked."""

    def refuse(path: str) -> None:
        raise AssertionError(f"OpenSlide was asked about {path}")

    monkeypatch.setattr("openslide.OpenSlide.detect_format", refuse)


@pytest.mark.parametrize("ending", [".vms", ".svs", ""])
@pytest.mark.parametrize(("text", "name"), [("p.jpg", "p.jpg"), ("p\\sq.jpg", "p q.jpg")])
@pytest.mark.parametrize("group", ["Virtual Microscope", "Uncompressed Virtual Microscope"])
def test_key_files_of_hamamatsu(tmp_path, ending, text, name, group):
    os.mkfifo(tmp_path / name)
    path = tmp_path / f"k{ending}"
    path.write_text(f"[{group} Specimen]\n{KEYS.format(text)}")
    with pytest.raises(InputError, match=f"{name}: a named pipe, not a file; remove it"):
        open_slide(path)


@pytest.mark.parametrize("name", ["Index.dat", ".Index.dat", "sub/Index.dat", "../Index.dat"])
def test_parts_of_mirax(tmp_path, name):
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m.mrxs").write_bytes(b"\xff\xd8\xff")
    os.mkfifo(tmp_path / "m" / name)
    ini: Path = tmp_path / "m" / "Slidedat.ini"
    ini.write_text(f"[GENERAL]\nSLIDE_ID=A\n[HIERARCHICAL]\nINDEXFILE = {name}\n")
    with pytest.raises(InputError, match=r"Index\.dat: a named pipe, not a file; remove it"):
        open_slide(tmp_path / "m.mrxs")
