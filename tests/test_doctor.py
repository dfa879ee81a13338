"""The job that looks whether everything works, as a user runs it."""

import pytest
import tifffile

from configs import base
from tests.slides.made_slides import drawn_tissue, smooth, tiles_of, write_pyramid
from wsss_jax import jobs
from wsss_jax.errors import InputError
from wsss_jax.jobs import doctor


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.svs"
    write_pyramid(path, 640, 512, drawn_tissue(640, 512), 0.5)
    return path


def _lines(config, capsys):
    jobs.run(config, None)
    return capsys.readouterr().out.splitlines()


def test_an_installation_that_works(capsys):
    lines = _lines(base.doctor(), capsys)
    assert all(line.startswith(("ok ", " " * 26)) for line in lines)
    for words in ("openslide-python", "OpenSlide library", "computes"):
        assert any(words in line for line in lines), words


def test_a_package_that_is_missing_or_too_old(tmp_path, monkeypatch, capsys):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package\nnumpy<1  # old\n")
    monkeypatch.setattr(doctor, "REQUIREMENTS", requirements)
    with pytest.raises(InputError, match="2 problems: see above"):
        jobs.run(base.doctor(), None)
    printed = capsys.readouterr().out
    assert "no-such-package   is not installed: pip install -r requirements.txt" in printed
    assert "is not <1: pip install" in printed


def test_a_slide(slide, capsys):
    config = base.doctor()
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


def test_what_is_odd_about_a_slide(tmp_path, capsys):
    """Pixels that are not square, a further section, a page that is no level."""
    image = tiles_of(smooth(1024, 768))
    path = tmp_path / "two.tif"
    options = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for size, kind in (((768, 1024, 3), 0), ((700, 900, 3), 0), ((300, 900, 3), 1)):
            tiles = (image(x, y) for y in range(0, size[0], 256) for x in range(0, size[1], 256))
            writer.write(
                tiles,
                shape=size,
                dtype="uint8",
                subfiletype=kind,
                resolution=(40000, 20000),
                resolutionunit="CENTIMETER",
                **options,
            )
    config = base.doctor()
    config.slide, config.mpp, config.tile, config.stride = str(path), 0.5, 32, 16
    text = " ".join(" ".join(_lines(config, capsys)).split())
    for words in (
        "1: 1024 x 768 pixels",
        "0.25 x 0.5 micrometers per pixel of level 0, by metadata",
        "its pixels are not square",
        "it holds 2 large images; only the largest is used",
        "an image of 900 x 300 pixels is no smaller version of the slide",
        "512 x 768 pixels at 0.5 micrometers",
    ):
        assert words in text, words


def test_a_slide_with_runs(slide, runs_dir, capsys):
    config = base.doctor()
    config.slide, config.mpp, config.tissue.source = str(slide), 1.0, "off"
    config.phase1, config.phase2 = str(runs_dir / "phase1"), str(runs_dir / "phase2")
    lines = _lines(config, capsys)
    assert "tiles/s on this machine" in lines[-1]
    text = " ".join(" ".join(lines).split())
    for words in (
        "phase 2 data set synthetic tissue (drawn by a program); resolution unknown, patches of 32",
        "validation score mIoU 0.",
        "epochs 1 of 1",
        "warning Phase 1 was trained on tissue drawn by a program",
    ):
        assert words in text, words


def test_batches_that_no_memory_holds(slide, runs_dir, capsys):
    config = base.doctor()
    config.slide, config.mpp, config.tissue.source = str(slide), 1.0, "off"
    config.phase1, config.phase2 = str(runs_dir / "phase1"), str(runs_dir / "phase2")
    config.batch_size = 10**12
    with pytest.raises(InputError, match="1 problem"):
        jobs.run(config, None)
    assert "memory was short; lower --config.batch_size" in capsys.readouterr().out


def test_a_slide_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "empty.svs").touch()
    config = base.doctor()
    config.slide = str(tmp_path / "empty.svs")
    with pytest.raises(InputError, match="1 problem"):
        jobs.run(config, None)
    assert "an empty file; copy the slide again" in capsys.readouterr().out
