"""How slides are found and named, and which folders their results get."""

import os
import shutil
from pathlib import Path

import pytest

from data.synthetic_slides import draw_section, write_pyramid
from tests.slides.slide_runs import MPP, SIZE, load_by_color, make_config
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading import catalog


def test_slides_are_found_and_named(tmp_path, monkeypatch):
    folder = tmp_path / "slides"  # whose parent is empty; that of tmp_path has other tests' files
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("a/x.svs", "a/x.tif", "a/y.svs", "a/notes.txt", "b/Y.svs", "b/z.svs", "d/0.dcm"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    found = catalog.name_slides(
        catalog.find_slides("a,b/*.svs,a/x.*,d", results.is_result_folder),
        0.0,
        {"x": 0.5, "x.tif": 0.4},
    )
    assert [(str(file.path), file.name, file.mpp) for file in found] == [
        ("a/x.svs", "x.svs", 0.5),
        ("a/x.tif", "x.tif", 0.4),
        ("a/y.svs", "a_y.svs", None),
        ("b/Y.svs", "b_Y.svs", None),
        ("b/z.svs", "z", None),
        ("d", "d", None),
    ]
    for text, words in (("c", "there is no c"), (",", "names no slide"), ("..", "no file that")):
        with pytest.raises(InputError, match=words):
            catalog.find_slides(text, results.is_result_folder)


def test_unusual_names_get_folders_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    latin1 = os.fsdecode(b"Sch\xe4fer.svs")
    for name in ("d/0.dcm", "..svs", "...svs", latin1):
        (tmp_path / name).touch()
    (tmp_path / "lost.svs").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path / "d")
    paths = catalog.find_slides("., ../..svs, ../...svs", results.is_result_folder)
    assert [file.name for file in catalog.name_slides(paths, 0.0, {})] == ["d", "..svs", "...svs"]
    found = catalog.name_slides(catalog.find_slides("..", results.is_result_folder), 0.0, {})
    assert [file.name for file in found] == ["Sch_fer", "d", "lost"]


def test_slide_names_that_are_not_utf8(slide, runs_dir, tmp_path):
    (tmp_path / "slides").mkdir()
    os.symlink(slide, os.fsencode(tmp_path / "slides") + b"/Sch\xe4fer.svs")
    (tmp_path / "slides" / os.fsdecode(b"cut\xe4.svs")).touch()
    config, workdir = make_config(tmp_path / "slides", runs_dir), tmp_path / "maps"
    with pytest.raises(InputError, match="an empty file"):
        jobs.run(config, workdir)
    assert (workdir / "Sch_fer" / "report.html").is_file()
    assert "cut_: " in (workdir / "failed.txt").read_text(encoding="utf-8")


def test_a_slide_keeps_the_name_of_its_finished_map(slide, runs_dir, tmp_path, monkeypatch, capsys):
    load_by_color(monkeypatch)
    (tmp_path / "slides").mkdir()
    shutil.copy(slide, tmp_path / "slides" / "a.svs")
    jobs.run(make_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    shutil.copy(slide, tmp_path / "slides" / "a.tif")
    jobs.run(make_config(tmp_path / "slides", runs_dir), tmp_path / "maps")
    printed = capsys.readouterr().out
    assert "a.svs: its results stay in " in printed and "1 of 2: a: finished before" in printed
    folders = {path.name for path in (tmp_path / "maps").iterdir() if path.is_dir()}
    assert folders == {"a", "a.tif"}


def test_another_slide_of_the_same_name_replaces_nothing(
    slide, finished, runs_dir, tmp_path, monkeypatch
):
    shutil.copytree(finished, tmp_path / "maps")
    # By the same relative path, from another folder.
    config = make_config(Path(slide.name), runs_dir)
    config.picture = 100
    monkeypatch.chdir(slide.parent)
    jobs.run(config, tmp_path / "maps")
    monkeypatch.chdir(tmp_path)
    other = Path(slide.name)
    write_pyramid(other, draw_section(*SIZE), 2 * MPP)
    summary = tmp_path / "maps" / "a slide" / "slide.json"
    before = summary.read_bytes()
    with pytest.raises(InputError, match=rf"another slide, {slide}; name another --workdir"):
        jobs.run(make_config(other, runs_dir), tmp_path / "maps")
    assert summary.read_bytes() == before
