"""Sampling that is interrupted: by signals, by kills, by other processes, by a full disk."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sampling.short_sample import list_files, make_config
from wsss_jax import jobs
from wsss_jax.errors import InputError, Preempted
from wsss_jax.files import hold_lock
from wsss_jax.sampling import slide_sample, tables
from wsss_jax.slides.reading.view import View

REPOSITORY = Path(__file__).parents[2]


def test_sigterm_stops_between_patches_and_the_same_command_continues(
    slide, sampled, tmp_path, monkeypatch
):
    out, read = tmp_path / "out", []
    real = View.read_alone

    def count(view, *arguments):
        read.append(arguments)
        if len(read) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        if 10 <= len(read) < 24:
            time.sleep(0.2)  # for the main thread to see it
        return real(view, *arguments)

    monkeypatch.setattr(View, "read_alone", count)
    with pytest.raises(Preempted, match="stopped by SIGTERM in a; the same command continues"):
        jobs.run(make_config(slide, out), out)
    (row,) = tables.read_slides(out / "slides.csv")
    assert row.patches == 0 and row.error == "" and not (out / "patches").exists()
    assert 10 <= len(read) < 24
    jobs.run(make_config(slide, out), out)
    assert len(read) == len(set(read)) == 24  # no patch is read again
    assert list_files(out) == list_files(sampled)


def test_a_kill_amid_the_moves_loses_nothing(slide, sampled, tmp_path, monkeypatch):
    out, moved = tmp_path / "out", []
    real = slide_sample.os.replace

    def die(source, target):
        if "/cut/" in str(source) and "/cut/" not in str(target):
            moved.append(target)
            if len(moved) == 12:
                raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(slide_sample.os, "replace", die)
        jobs.run(make_config(slide, out), out)
    assert len(list((out / "patches/a").iterdir())) > 3
    monkeypatch.setattr(View, "read_alone", None)  # all patches are there
    jobs.run(make_config(slide, out), out)
    assert list_files(out) == list_files(sampled)


def test_killed_slides_end_with_the_same_bytes(slide, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.sampling.short_sample", slide, tmp_path, "5"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = list_files(tmp_path / "undisturbed")
    killed = [path for path in tmp_path.glob("killed*") if path.is_dir()]
    assert killed and len(expected) > 50
    for out in killed:
        assert list_files(out) == expected


def test_a_slide_begun_with_other_settings_begins_anew(slide, sampled, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(slide_sample, "_judge", die)
        jobs.run(make_config(slide, out, mpp=0.5), out)
    assert len(list((out / "slides/a/cut").iterdir())) == 24
    jobs.run(make_config(slide, out), out)
    assert list_files(out) == list_files(sampled)


def test_lost_patches_are_cut_again(slide, sampled, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(sampled, out)
    next((out / "patches/a").iterdir()).unlink()
    (out / "slides/a/kept.geojson").unlink()
    jobs.run(make_config(slide, out), out)
    assert list_files(out) == list_files(sampled)


def test_a_full_disk_names_the_folder(slide, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    monkeypatch.setattr(slide_sample, "write_image_quickly", full)
    with pytest.raises(InputError, match=rf"{out}/a: No space left .* another --config\.out"):
        jobs.run(make_config(slide, out), out)


def test_one_process_at_a_time_works_on_a_slide(slide, sampled, tmp_path):
    out = tmp_path / "out"
    with (
        hold_lock(out / "slides/a/lock"),
        pytest.raises(InputError, match=r"another process works in .*slides/a: wait until"),
    ):
        jobs.run(make_config(slide, out), out)
    assert "another process works" in tables.read_slides(out / "slides.csv")[0].error
    jobs.run(make_config(slide, out), out)
    assert list_files(out) == list_files(sampled)
