"""The job `polygons`: shapes on images to masks, and which files it replaces."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import base_tools
from data import patch_files
from data.dataset import load_dataset
from data.synthetic import DATASET
from tests.polygons.drawing_files import (
    encode_png,
    make_shape,
    write_labelme,
)
from tests.polygons.polygon_runs import EXCLUDED, STROMA, TUMOR, list_files, read_mask, run
from wsss_jax import jobs
from wsss_jax.errors import InputError

SIZE = 20, 16


@pytest.fixture
def image(tmp_path):
    """An image beside which files of shapes are written: `drawn/a.png`."""
    path = tmp_path / "drawn" / "a.png"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    patch_files.write_image(path, pixels)
    return path


def test_labelme_to_masks(image, tmp_path, capsys):
    folder = image.parent
    shapes = [
        make_shape(TUMOR, [[1, 1], [9, 1], [9, 9], [1, 9]]),
        make_shape("Stroma!", [[3, 3], [6, 6]], "rectangle"),
        make_shape("scale bar", [[0, 0], [9, 9]], "rectangle"),
        make_shape("__ignore__", [[4, 4], [5, 5]], "rectangle"),
        make_shape(TUMOR, [[1, 1], [2, 2]], "line"),
    ]
    write_labelme(folder / "a.json", shapes, image="a.png")
    inside = encode_png(patch_files.read_image(image, None))
    write_labelme(
        folder / "b.json", shapes[:1], imageData=inside, imageWidth=None, imageHeight=None
    )
    fields = {"labels": (("Stroma!", STROMA),), "ignored": ("scale bar",)}
    run(folder, tmp_path / "run", **fields)
    expected = np.full((SIZE[1], SIZE[0]), EXCLUDED, np.uint8)
    expected[1:9, 1:9] = 0
    np.testing.assert_array_equal(read_mask(tmp_path / "run/masks/b.png"), expected)
    expected[3:6, 3:6] = DATASET.classes.index(STROMA)
    expected[4, 4] = EXCLUDED
    np.testing.assert_array_equal(read_mask(tmp_path / "run/masks/a.png"), expected)
    for name in "ab":
        written = patch_files.read_image(tmp_path / f"run/images/{name}.png", None)
        np.testing.assert_array_equal(written, patch_files.read_image(image, None))
    assert load_dataset("", tmp_path / "run") == DATASET
    assert "left out, without area: 1 line" in capsys.readouterr().out
    # The same command gives the same bytes.
    before = list_files(tmp_path / "run")
    run(folder, tmp_path / "run", **fields)
    run(folder, tmp_path / "again", **fields)
    assert before == list_files(tmp_path / "run") == list_files(tmp_path / "again")


def test_masks_are_cut_into_patches(image, tmp_path):
    """What the job writes is what `prepare` reads."""
    boxes = [[[0, 0], [9, 16]], [[9, 0], [20, 16]]]
    shapes = [make_shape(c, b, "rectangle") for c, b in zip((TUMOR, STROMA), boxes)]
    for name in "abc":
        write_labelme(image.parent / f"{name}.json", shapes, image="a.png")
    run(image.parent, tmp_path / "run")
    folders = [str(tmp_path / "run" / name) for name in ("images", "masks")]
    spec = str(tmp_path / "run" / "dataset.json")
    config = base_tools.prepare(*folders, str(tmp_path / "data"), spec)
    config.codes = {name: (value,) for value, name in enumerate(DATASET.classes)}
    config.excluded, config.workers = (EXCLUDED,), 1
    config.patch = config.stride = config.resize = 8
    jobs.run(config, tmp_path)
    assert len(list((tmp_path / "data").rglob("img/*.png"))) == 3 * 3 * 2


def test_background_and_what_lies_on_top(image, tmp_path):
    shapes = [
        make_shape(TUMOR, [[2, 2], [6, 6]], "rectangle"),
        make_shape(STROMA, [[0, 0], [9, 9]], "rectangle"),
    ]
    path = write_labelme(image.parent / "a.json", shapes, image="a.png")
    tumor, stroma = 0, DATASET.classes.index(STROMA)
    other = DATASET.classes[1]
    for number, (fields, inside, outside) in enumerate(
        [
            ({}, stroma, EXCLUDED),
            ({"overlap": "smaller", "background": other}, tumor, 1),
            ({"overlap": "classes"}, stroma, EXCLUDED),
            ({"overlap": "classes", "order": DATASET.classes[::-1]}, tumor, EXCLUDED),
        ]
    ):
        run(path, tmp_path / f"run{number}", **fields)
        mask = read_mask(tmp_path / f"run{number}/masks/a.png")
        assert (mask[4, 4], mask[8, 8], mask[12, 12]) == (inside, stroma, outside)


def test_classes_of_a_list_and_of_labels_txt(image, tmp_path):
    shapes = [make_shape("fat", [[2, 2], [6, 6]], "rectangle")]
    path = write_labelme(image.parent / "a.json", shapes, image="a.png")
    text = tmp_path / "labels.txt"
    text.write_text("__ignore__\n_background_\ngland\n\nfat\n")
    run(path, tmp_path / "one", classes=("gland", "fat"))
    run(path, tmp_path / "two", dataset=text)
    assert list_files(tmp_path / "one") == list_files(tmp_path / "two")
    dataset = load_dataset("", tmp_path / "two")
    assert dataset.classes == ("gland", "fat") and not dataset.white
    mask = patch_files.read_mask(tmp_path / "two/masks/a.png", dataset, None)
    assert (mask[3, 3], mask[9, 9]) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "", "classes": ()}, r"config\.dataset and config\.classes are not set"),
        ({"dataset": "luad_histoseg", "classes": ("a", "b")}, "are both set"),
        ({"classes": ("a", "A")}, "config.classes: field 'classes' has 'A' twice"),
        ({"dataset": "labels.txt"}, "labels.txt: No such file"),
        ({"background": "fat"}, r"config\.background names the class 'fat'; there are "),
        ({"labels": (("a", "fat"),)}, r"config\.labels names the class 'fat'"),
        ({"labels": (("a", TUMOR), ("a", STROMA))}, r"config\.labels has 'a' twice"),
        ({"labels": (("a", TUMOR),), "ignored": ("a",)}, "both have 'a'"),
        ({"overlap": "classes", "order": (TUMOR,)}, "name each class once"),
        ({"order": (TUMOR,)}, r"config\.order needs --config\.overlap=classes"),
        ({"to": "labelme"}, r"config\.images is ''"),
        ({"mpp_table": "mpp.csv", "images": "."}, "mpp.csv: No such file"),
    ],
)
def test_wrong_settings_stop_the_job_before_it_writes(image, tmp_path, fields, words):
    path = write_labelme(image.parent / "a.json", [], image="a.png")
    with pytest.raises(InputError, match=words):
        run(path, tmp_path / "run", **fields)
    assert not list((tmp_path / "run").glob("*"))


def test_a_bad_file_costs_itself_only(image, tmp_path, capsys):
    folder, good = image.parent, [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")]
    odd = [*good, make_shape("tumour?", [[1, 1], [9, 9]], "rectangle"), make_shape("x", [[1, 1]])]
    write_labelme(folder / "a.json", good, image="a.png")
    write_labelme(folder / "b.json", [make_shape("fat", [[1, 1], [9, 9]], "rectangle")])
    write_labelme(folder / "c.json", good, image=f"{300 * 'n'}.png")
    write_labelme(folder / "d.json", good, image="a.png", size=(21, 16))
    write_labelme(folder / "e.json", odd, image="a.png")
    write_labelme(folder / "f.json", good, image="..\\drawn\\a.png")
    write_labelme(
        folder / "g.json", [make_shape("y", [[30, 0], [40, 9]], "rectangle")], image="a.png"
    )
    with pytest.raises(
        InputError, match=r"5 of 7 files failed, listed in .*failed\.txt: b\.json; c"
    ):
        run(folder, tmp_path / "run", write_images=True)
    assert set(list_files(tmp_path / "run")) == {
        f"{kind}/{name}.png" for kind in ("images", "masks") for name in "af"
    }
    lines = (tmp_path / "run/failed.txt").read_text().splitlines()
    for line, words in zip(
        lines,
        [
            "b.json: its image '' is not there",
            "c.json: its image 'nnnnnnnnnnnn...nnnnnnnnn.png' is not there",
            "d.json: its image is 20x16 pixels, but the shapes were drawn on 21x16",
            "e.json: shape 3 ('x') has a ring of 1 corners",
            "g.json: shape 1 ('y') lies outside of the image",
        ],
        strict=True,
    ):
        assert words in line
    # Corrected, they are done, and the list of failures goes.
    for name in "beg":
        write_labelme(folder / f"{name}.json", odd[:2], image="a.png")
    (folder / "c.json").unlink()
    (folder / "d.json").unlink()
    with pytest.raises(InputError, match=r"3 of 5 files failed"):
        run(folder, tmp_path / "run")
    assert (
        f"b.json: no class has the label of shape 2 ('tumour?'); there are {TUMOR}, "
        in (tmp_path / "run/failed.txt").read_text()
    )
    run(folder, tmp_path / "run", labels=(("tumour?", ""),))
    assert not (tmp_path / "run/failed.txt").exists()
    assert (read_mask(tmp_path / "run/masks/e.png") == EXCLUDED).all()


def test_without_images(tmp_path):
    path = write_labelme(tmp_path / "a.json", [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")])
    run(path, tmp_path / "run", write_images=False)
    assert set(list_files(tmp_path / "run")) == {"masks/a.png"}


def test_nothing_that_was_changed_is_overwritten(image, tmp_path):
    folder = image.parent
    shapes = [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")]
    for name in "ab":
        write_labelme(folder / f"{name}.json", shapes, image="a.png")
    run(folder, tmp_path / "run")
    changed = read_mask(tmp_path / "run/masks/a.png")
    changed[0] = 0
    patch_files.write_mask(tmp_path / "run/masks/a.png", changed, DATASET)
    before = list_files(tmp_path / "run")
    with pytest.raises(InputError, match=r"1 of 2 files failed.*a\.png was changed since"):
        run(folder, tmp_path / "run")
    assert list_files(tmp_path / "run") == before
    (tmp_path / "run/masks/a.png").unlink()
    run(folder, tmp_path / "run")
    assert list_files(tmp_path / "run")["masks/a.png"] == before["masks/b.png"]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_was_stopped_knows_what_is_its_own(image, tmp_path, number):
    """With other settings than before, so that it was about to replace its own files."""
    shapes = [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")]
    for index in range(100):
        write_labelme(image.parent / f"{index:03d}.json", shapes, image="a.png")
    run(image.parent, tmp_path / "run")
    before = list_files(tmp_path / "run")
    flags = [
        f"--config.{name}={value}"
        for name, value in (
            ("files", image.parent),
            ("dataset", tmp_path / "tissue.json"),
            ("background", STROMA),
        )
    ]
    command = [sys.executable, "main.py", "--config=configs/polygons.py", *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([*command, f"--workdir={tmp_path / 'run'}"], env=environment)
    last = tmp_path / "run/masks/010.png"
    while process.poll() is None and last.read_bytes() == before["masks/010.png"]:
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait() != 0
    left = list_files(tmp_path / "run")
    assert 10 < sum(left.get(name) != content for name, content in before.items()) < 200
    run(image.parent, tmp_path / "run", background=STROMA)
    run(image.parent, tmp_path / "other", background=STROMA)
    assert list_files(tmp_path / "run") == list_files(tmp_path / "other")


def test_what_a_source_no_longer_gives_is_removed(image, tmp_path):
    shapes = [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")]
    path = write_labelme(image.parent / "a.json", shapes, image="a.png")
    other = write_labelme(image.parent / "b.json", shapes, image="a.png")
    run(f"{path},{other}", tmp_path / "run")
    run(path, tmp_path / "run", write_images=False)  # b is not named: it stays
    names = {"masks/a.png", "masks/b.png", "images/b.png"}
    assert set(list_files(tmp_path / "run")) == names
    path.write_text("{}")
    with pytest.raises(InputError, match="1 of 1 file failed"):
        run(path, tmp_path / "run")
    assert set(list_files(tmp_path / "run")) == names - {"masks/a.png"}


def test_two_files_for_one_mask(image, tmp_path):
    shapes = [make_shape(TUMOR, [[1, 1], [9, 9]], "rectangle")]
    write_labelme(image.parent / "a.json", shapes, image="a.png")
    write_labelme(image.parent / "x/A.json", shapes[:0], image="../a.png")
    with pytest.raises(InputError, match=r"A\.json: images/A\.png is also written of .*a\.json"):
        run(f"{image.parent}/*.json,{image.parent}/x", tmp_path / "run")
    # In a later start, too.
    shutil.move(image.parent / "x/A.json", image.parent / "x/a.json")
    with pytest.raises(InputError, match=r"images/a\.png is there already, of .*drawn/a\.json"):
        run(image.parent / "x", tmp_path / "run")
    assert set(list_files(tmp_path / "run")) == {"images/a.png", "masks/a.png"}


def test_a_workdir_of_something_else(image, tmp_path):
    path = write_labelme(image.parent / "a.json", [], image="a.png")
    run(path, tmp_path / "run")
    with pytest.raises(InputError, match="was made with to='masks', this is 'geojson'"):
        run(tmp_path / "run/masks", tmp_path / "run", to="geojson")
    with pytest.raises(InputError, match="holds no run"):
        run(path, image.parent)
