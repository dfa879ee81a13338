"""The job "doctor", as a user runs it."""

import pytest
import tifffile

from configs import base_slides
from data.synthetic_slides import (
    Drawing,
    draw_section,
    draw_waves,
    iterate_tiles,
    wrap_array,
    write_pyramid,
)
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.jobs import doctor


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_pyramid(path, draw_section(640, 512), 0.5)
    return path


def _lines(config, capsys):
    jobs.run(config, None)
    return capsys.readouterr().out.splitlines()


def test_a_working_installation(capsys):
    lines = _lines(base_slides.doctor(), capsys)
    assert all(line.startswith(("ok ", " " * 26)) for line in lines)
    for words in ("openslide-python", "OpenSlide library", "computes"):
        assert any(words in line for line in lines), words


def test_missing_and_old_packages_are_problems(tmp_path, monkeypatch, capsys):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package\nnumpy<1  # old\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", requirements)
    with pytest.raises(InputError, match="2 problems: see above"):
        jobs.run(base_slides.doctor(), None)
    printed = capsys.readouterr().out
    assert "no-such-package   is not installed: pip install -r requirements.txt" in printed
    assert "is not <1: pip install" in printed


def test_a_slide_is_described(slide, capsys):
    config = base_slides.doctor()
    config.slide = str(slide)
    with pytest.raises(InputError, match="1 problem: see above"):
        jobs.run(config, None)
    assert "set --config.mpp=1.0 (10x)" in capsys.readouterr().out
    config.mpp, config.tile, config.stride, config.tissue.source = 1.0, 32, 16, "off"
    text = "\n".join(_lines(config, capsys))
    for words in (
        "aperio",
        "640 x 512, 160 x 128",
        "0.5 micrometers per pixel of level 0, by metadata",
        "320 x 256 pixels at 1 micrometers",
        "100.0% of the slide",
        "285 of 32 pixels, every 16",
        "unknown: give --config.phase1",
    ):
        assert words in text, words
    assert all(line.startswith(("ok ", " " * 26)) for line in text.splitlines())


def test_warnings_about_a_slide_are_printed(tmp_path, capsys):
    """Pixels that are not square, a further section, a page that is not a level."""
    waves = draw_waves(1024, 768)
    path = tmp_path / "two.tif"
    options = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for size, kind in (((768, 1024, 3), 0), ((700, 900, 3), 0), ((300, 900, 3), 1)):
            height, width, _ = size
            writer.write(
                iterate_tiles(Drawing(width, height, wrap_array(waves).draw_tile)),
                shape=size,
                dtype="uint8",
                subfiletype=kind,
                resolution=(40000, 20000),
                resolutionunit="CENTIMETER",
                **options,
            )
    config = base_slides.doctor()
    config.slide, config.mpp, config.tile, config.stride = str(path), 0.5, 32, 16
    lines = _lines(config, capsys)
    heads = [tuple(line.split()[:2]) for line in lines if not line.startswith(" ")]
    assert heads.count(("note", "slide")) == 3 and {state for state, _ in heads} == {"ok", "note"}
    assert not {subject for _, subject in heads} & {"note", "warning"}
    text = " ".join(" ".join(lines).split())
    for words in (
        "1: 1024 x 768 pixels",
        "0.25 x 0.5 micrometers per pixel of level 0, by metadata",
        "its pixels are not square",
        "it holds 2 large images; only the largest is used",
        "an image of 900 x 300 pixels is no smaller version of the slide",
        "512 x 768 pixels at 0.5 micrometers",
    ):
        assert words in text, words


def test_a_slide_with_networks_is_timed(slide, runs_dir, capsys):
    config = base_slides.doctor()
    config.slide, config.mpp, config.tissue.source = str(slide), 1.0, "off"
    config.phase1, config.phase2 = str(runs_dir / "phase1"), str(runs_dir / "phase2")
    lines = _lines(config, capsys)
    assert "tiles/s on this machine" in lines[-1]
    text = " ".join(" ".join(lines).split())
    for words in (
        "phase 2 data set synthetic tissue (drawn by a program); resolution unknown, patches of 32",
        "validation score mIoU 0.",
        "epochs 1 of 1",
        "warning networks Phase 1 was trained on tissue drawn by a program",
    ):
        assert words in text, words


def test_batches_beyond_memory_are_a_problem(slide, runs_dir, capsys):
    config = base_slides.doctor()
    config.slide, config.mpp, config.tissue.source = str(slide), 1.0, "off"
    config.phase1, config.phase2 = str(runs_dir / "phase1"), str(runs_dir / "phase2")
    config.batch_size = 10**12
    with pytest.raises(InputError, match="1 problem"):
        jobs.run(config, None)
    assert "memory was short; lower --config.batch_size" in capsys.readouterr().out


def test_an_unreadable_slide_is_a_problem(tmp_path, capsys):
    (tmp_path / "empty.svs").touch()
    config = base_slides.doctor()
    config.slide = str(tmp_path / "empty.svs")
    with pytest.raises(InputError, match="1 problem"):
        jobs.run(config, None)
    assert "an empty file; copy the slide again" in capsys.readouterr().out
