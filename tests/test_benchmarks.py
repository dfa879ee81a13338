"""Runs every benchmark at its smallest and checks the fields of its rows and the counts."""

import argparse
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
import zarr

from benchmarks import (
    convolutions,
    corrections,
    counts,
    crf,
    inputs,
    labeling,
    masks,
    measure,
    polygons,
    profile,
    programs,
    quality,
    reading,
    sample,
    scaling,
    slide_peers,
    slides,
    train,
)
from benchmarks.convolutions import Shape
from configs import base_slides
from data.patch_files import write_image
from data.synthetic_slides import draw_section, write_pyramid
from wsss_jax import convolution_table
from wsss_jax.crf import DenseCrf
from wsss_jax.methods.gate import Gate
from wsss_jax.models import convolution
from wsss_jax.models.lowering import parse_choice
from wsss_jax.slides.mapping import networks

WIDTH, SIZE = 1 / 16, 32


def _arguments(**fields):
    return argparse.Namespace(size=SIZE, width=WIDTH, repeats=1, torch=False, **fields)


def test_pseudo_masks():
    arguments = _arguments(
        batch=2, patches=3, reference_patches=1, workers=0, precision=["float32"]
    )
    arguments.torch = measure.use_torch(True)
    ours, *reference = masks.run(arguments)
    assert ours["patches"] == 3 and ours["masks/s"] == pytest.approx(3 / ours["s/patch"])
    assert ours["writing"] > 0 and 0 <= ours["waiting"] < 1
    for row in reference:
        assert row["patches"] == 1 and ours["equal"] > 0.99
        assert ours["x the released way"] == pytest.approx(ours["masks/s"] / row["masks/s"])


def test_dense_crf(monkeypatch):
    monkeypatch.setitem(crf.KERNELS, "small", DenseCrf(2, 1.0, 3.0, 2.0, 20.0, 10.0))
    ways = ["ours, stride 1", "ours, stride 2"] + [crf.THEIRS] * crf.use_theirs(True)
    arguments = _arguments(
        batch=2, images="", kernels=["small"], strides=[1, 2], theirs=len(ways) > 2
    )
    rows = crf.run(arguments)
    assert [row["way"] for row in rows] == ways
    assert all(row["s/patch"] > 0 and row["patches"] == 2 for row in rows)
    assert rows[0]["unlike every pixel"] == 0 and rows[1]["unlike every pixel"] < 0.1


def test_labeling():
    arguments = _arguments(patches=8, people=2, rate=20.0, seconds=1.0, browser=None)
    (row,) = labeling.run(arguments)
    assert row["keys"] > 3 and row["lost"] == 0
    assert 0 < row["median ms"] <= row["95 % ms"] <= row["longest ms"]


def test_places_to_correct(tmp_path):
    """The highest ranks come first, and no two overlap by more than a quarter."""
    ranks = {("a", 0, 0): 5.0, ("a", 30, 0): 4.0, ("b", 30, 0): 3.0, ("a", 48, 0): 2.0}
    places, corners = corrections.choose({**ranks, ("a", 200, 0): 1.0}, 4, 64)
    assert places == [("a", 0, 0), ("b", 30, 0), ("a", 48, 0), ("a", 200, 0)]
    assert corners[1] == (30, 0)
    slide = corrections.draw_slide(tmp_path, "m0", 1, (0, 0))
    wrong = slide.mask.copy()
    wrong[64:128, 128:192] = (wrong[64:128, 128:192] + 1) % 4
    tifffile.imwrite(tmp_path / "label_map.ome.tif", wrong)
    rng = np.random.default_rng(0)
    ranked = corrections.rank_places("worst", slide, tmp_path, 64, rng)
    assert max(ranked, key=ranked.__getitem__) == ("m0", 128, 64)
    assert set(corrections.rank_places("random", slide, tmp_path, 64, rng)) == set(ranked)


@pytest.mark.long
def test_corrections(tmp_path, monkeypatch):
    monkeypatch.setattr(corrections, "ARMS", ("least certain", "worst"))
    arguments = argparse.Namespace(
        **{"folder": tmp_path, "size": 64, "squares": 1, "labels": 16, "seeds": 1, "epochs": 1},
        **{"mapped": 1, "tested": 1, "corrections": 3, "more_epochs": 1},
    )
    row, mean = corrections.run(arguments)
    assert 0 < row["error"] <= 1 and mean["worst"] == row["worst"]
    assert all(0 <= row[arm] < 1 for arm in ("before", "least certain", "worst"))
    for arm in ("least_certain", "worst"):
        labeled = tmp_path / "seed0" / f"corrections_{arm}" / "labeled" / "train"
        assert len(list(labeled.iterdir())) == 3
        trained = json.loads((tmp_path / "seed0" / arm / "phase2" / "patches.json").read_text())
        assert len(trained) == 16 + 3


def test_files_of_maps():
    rows = polygons.run(argparse.Namespace(side=120))
    assert {row["map"] for row in rows} == {"noisy", "structured"}
    for name in polygons.MAPS:
        *files, total = (row for row in rows if row["map"] == name)
        assert total["file"] == "all" and total["share"] == 1
        assert {"polygons", "GeoParquet", "label map"} <= {row["file"] for row in files}
        assert math.isclose(sum(row["s"] for row in files), total["s"])
    noisy, structured = (polygons.draw_map(120, smoothing) for smoothing in polygons.MAPS.values())
    edges = [np.count_nonzero(np.diff(labels)) for labels in (noisy, structured)]
    assert edges[0] > 3 * edges[1] and (noisy[:12] == 4).all() and (noisy[12:-12, 12:-12] < 4).all()


@pytest.mark.parametrize("phase", [1, 2])
def test_pytorch_trains_beside_us(phase):
    """The way of the paper; the tuned one compiles for minutes."""
    pytest.importorskip("torch")
    way = next(train.make_torch_ways(phase, WIDTH, train.draw_batch(phase, 2, SIZE)))
    way.step()
    way.forward()


def test_sampling(monkeypatch, tmp_path):
    monkeypatch.setattr(sample, "SLIDES", tmp_path)
    arguments = argparse.Namespace(side=1024, slides=[], slide_mpp=0.0, patches=6)
    (row,) = sample.run(arguments)
    assert row["slide"] == "1024_1024.svs" and 1 <= row["patches"] <= 6
    assert 0 < row["reading"] < 1 and row["patches/s"] == row["patches"] / row["s"]


def test_quality(tmp_path):
    slide = tmp_path / "s.svs"
    write_pyramid(slide, draw_section(640, 640), 0.5)
    for folder in ("tiles", "tissue"):
        (tmp_path / folder).mkdir()
        for number in (0, 1):
            tile = draw_section(25600, 25600).draw_tile(12800 + 256 * number, 12800)
            write_image(tmp_path / folder / f"{number}.png", tile)
    arguments = argparse.Namespace(
        tiles=tmp_path / "tiles", tissue=tmp_path / "tissue", slide=slide, slide_mpp=0.5
    )
    tiles, detection = quality.run(arguments)
    assert [row["tile"] for row in tiles] == ["0", "1"]
    assert [row["patches"] for row in detection] == ["as they are", *quality.SPOILED]
    found = {row["patches"]: row for row in detection}
    assert found["black dirt, 10 %"]["others"] == found["black dirt, 10 %"]["slide"] == 1


def test_inputs(monkeypatch):
    monkeypatch.setattr(inputs, "READ_AHEAD", 1)
    rows = inputs.run(
        _arguments(
            workers=[0],
            batch=4,
            patches=12,
            epochs=1,
            wait_epochs=1,
            step_seconds=0.01,
            train_width=None,
        )
    )
    assert [row["source"] for row in rows] == ["PNG files", "ArrayRecord"]
    assert all(row["patches/s"] > 0 and 0 < row["waiting"] < 1 for row in rows)


def test_convolutions_one_by_one(monkeypatch):
    shapes = {"one": Shape(24, 24, 64, 16, 3, 2, 1), "again": Shape(24, 24, 64, 16, 3, 2, 1)}
    monkeypatch.setattr(convolutions, "list_shapes", lambda *_: shapes)
    rows = convolutions.run(_arguments(phase=[1], batch=1))
    assert [row["what"] for row in rows] == ["forward", "input gradient", "kernel gradient"]
    assert [row["used"] for row in rows] == ["XLA", "XLA", "product"]
    assert all(row["times"] == 2 and row[row["used"]] > 0 for row in rows)
    (_, total, _) = convolutions.sum_by_network(rows)
    assert total["used"] == pytest.approx(2 * rows[1]["XLA"])


def test_tuning_enters_the_fastest_ways(monkeypatch, tmp_path):
    """Each shape once, whatever dilation its kernel has beyond the image."""
    wide = Shape(12, 12, 4, 8, 3, 1, 2)
    shapes = {
        "a": Shape(12, 12, 3, 4, 3, 2, 1),
        "b": wide,
        "c": wide,
        "d": wide._replace(dilation=12),
    }
    monkeypatch.setattr(convolutions, "list_shapes", lambda *_: shapes)
    table = tmp_path / "convolutions.json"
    rows = convolutions.tune(_arguments(phase=[1], batch=2, precision=["bfloat16"], table=table))
    assert len(rows) == 2 + 3 + 3
    assert sorted({row["convolution"] for row in rows}) == [
        "1x1, 4 to 8 at 12",
        "3x3, 3 to 4 at 12, stride 2",
        "3x3, 4 to 8 at 12, dilation 2",
    ]
    for row in rows:
        measured = {way: row[way] for way in convolutions.WAYS[:-1] if row[way] is not None}
        assert "XLA" in measured and len(measured) > 1
        assert min(measured.values()) >= 0.97 * row[row["chosen"]] or row["chosen"] == min(
            measured, key=measured.get
        )
    sums = convolutions.sum_tuned(rows)
    assert len(sums) == 3
    assert all(total["chosen"] <= total["by rule"] for total in sums)
    (versions,) = convolution_table.read(table).values()
    (precisions,) = versions.values()
    chosen = {
        (precision, str(choice.shape), way)
        for precision, entry in precisions.items()
        for choice in map(parse_choice, entry["ways"])
        for way in choice.ways
    }
    assert {(row["precision"], row["convolution"], row["chosen"]) for row in rows} <= chosen


def test_a_way_must_be_clearly_faster_than_the_rule():
    seconds = {"XLA": 0.98, "product": 1.0, "copied": 0.99}
    assert convolutions.choose_fastest(seconds, "product") == "product"
    assert convolutions.choose_fastest(seconds | {"XLA": 0.9}, "product") == "XLA"


@pytest.mark.parametrize("channels", [511, 512])
def test_the_chosen_way_is_that_of_training(channels):
    """The program has a matrix product exactly if `choose_way` says so."""
    shape = Shape(24, 24, channels, 4, 3, 1, 1)
    x, gradient = (jnp.zeros((1, 24, 24, depth)) for depth in (channels, 4))
    kernel = jnp.zeros((3, 3, channels, 4))

    def differentiate(x, gradient):
        return jax.vjp(lambda x: convolution.convolve(x, kernel, 1, 1), x)[1](gradient)

    product = "dot_general" in jax.jit(differentiate).lower(x, gradient).as_text()
    way = convolutions.choose_way(shape, "input gradient")
    assert way == ("product" if product else "XLA") == ("product" if channels >= 512 else "XLA")


@pytest.mark.parametrize("dilation,way", [(2, "XLA"), (3, "inside")])
def test_padding_is_left_out_where_training_does(dilation, way):
    shape = Shape(24, 24, 512, 4, 3, 1, dilation)
    x, kernel = jnp.zeros((1, 24, 24, 512)), jnp.zeros((3, 3, 512, 4))
    lowered = jax.jit(lambda x: convolution.convolve(x, kernel, 1, dilation)).lower(x)
    assert convolutions.choose_way(shape, "forward") == way
    assert lowered.as_text().count("dot_general") == (9 if way == "inside" else 0)


def test_products_with_padding():
    # With dilation 4 on three pixels, only the middle position of the kernel meets the image.
    assert convolutions.count_products(Shape(3, 3, 2, 5, 3, 1, 1), padded=True) == 81 * 10
    assert convolutions.count_products(Shape(3, 3, 2, 5, 3, 1, 1), padded=False) == 49 * 10
    assert convolutions.count_products(Shape(3, 3, 2, 5, 3, 1, 4), padded=False) == 9 * 10


def test_resnet38_by_stage():
    """199.6 GFLOP for a patch of 224 pixels at full width, which is only traced."""
    rows = counts.count_stages(1, 224, 1.0)
    assert [row["stage"] for row in rows] == ["conv1a", "b2", "b3", "b4", "b5", "b6", "b7"]
    assert sum(row["GFLOP"] for row in rows) == pytest.approx(199.6, abs=0.1)
    assert all(row["inside"] < row["GFLOP"] or row["stage"] == "b7" for row in rows)


def test_the_operations_of_xla_are_those_by_hand():
    program = programs.make_grad_cam("float32", WIDTH, 1, SIZE)
    row = counts.count_program("Grad-CAM", program, _arguments(batch=1))
    assert row["by hand"] < row["GFLOP (XLA)"] < 1.1 * row["by hand"]
    assert row["FLOP/byte"] == pytest.approx(row["GFLOP (XLA)"] / row["GB"])


def test_all_reduces_of_a_program():
    text = """
      %r.1 = (f32[3,4]{1,0}, bf16[]) all-reduce(%a, %b), channel_id=1
      ROOT %r.2 = f32[5]{0} all-reduce-start(%c)
      %d = f32[5]{0} all-reduce-done(%r.2)
    """
    assert scaling.list_all_reduces(text) == [3 * 4 * 4 + 2, 20]


def test_a_step_sends_its_gradients():
    (sent,) = scaling.measure_volumes(2, [1], WIDTH)
    assert sent["devices"] == 2 and sent["statistics"] == 0
    assert sent["MB"] == pytest.approx(sent["gradients"], rel=1e-3)
    rows = scaling.model_steps(sent, 0.1, 0)
    assert [row["system"] for row in rows] == [system.name for system in scaling.SYSTEMS]
    for row in rows:
        assert 0 < row["efficiency, none hidden"] <= row["efficiency, hidden"] <= 1


def test_gradients_of_the_input_are_told_from_those_of_the_kernel():
    """By the products as the modules of convolutions write them."""
    models = Path(convolution.__file__).parent
    text = "".join((models / name).read_text() for name in ("cpu_convolution.py", "winograd.py"))
    products = re.findall(r'"(\w+,\w+->\w+)"', text)
    kinds = {p: profile.classify(f"transpose(jvp(X))/{p}/dot_general", True) for p in products}
    of_inputs = {product for product, kind in kinds.items() if kind == "products for the input"}
    assert of_inputs == {"bhwf,kf->bhwk", "bhwf,df->bhwd", "ptf,pdf->ptd"}


def test_profile():
    kinds, shapes = profile.run(_arguments(what="masks", phase=1, batch=1, precision="float32"))
    assert math.isclose(sum(row["share"] for row in kinds), 1)
    assert {"convolutions, forward", "convolutions of gradients"} <= {row["kind"] for row in kinds}
    assert shapes[0]["convolution"] and shapes[0]["ms"] > 0


def test_every_report_appends_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    for share in (0.5, None):
        measure.report("train", {"batch": 2}, [{"way": "ours", "share": share}])
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["rows"][0]["share"] for line in lines] == [0.5, None]
    assert lines[0]["machine"]["processor"] and lines[0]["machine"]["numpy"]
    assert "| ours | 0.5   |" in capsys.readouterr().out


def test_decodes_of_reading():
    (row,) = reading.run([2.0], [2500], 1500)
    assert row["columns"] == 2500 and row["level pixels per working pixel"] == 2.0
    assert 0 < row["tiles"] <= 20 * 12 and row["processor s"] > 0
    assert row["decodes per tile, map"] == 1


def test_tiatoolbox_gets_the_same_network(tmp_path):
    torch = pytest.importorskip("torch")
    args = argparse.Namespace(network="tiny", batch=2, tile=64)
    slide_peers.save_torchscript(args, tmp_path / "network.pt")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = torch.jit.load(tmp_path / "network.pt")(torch.from_numpy(images)).detach().numpy()
    config = base_slides.segment("unused", "", "unused")
    config.gate.mode = "off"
    ours = networks.build({"phase2": slides.build_network("tiny")}, Gate.of(config.gate))
    np.testing.assert_allclose(found, ours.predict(images), rtol=0, atol=1e-5)


def test_label_maps_are_compared_without_the_last_tiles(tmp_path):
    tifffile.imwrite(tmp_path / "ours.tif", np.uint8([[0, 1, 2], [3, 1, 0], [0, 0, 0]]))
    theirs = zarr.create_group(tmp_path / "theirs.zarr")
    theirs.create_array("predictions", data=np.int64([[0, 1, 1], [3, 2, 1], [1, 1, 1]]))
    assert slide_peers.compare(tmp_path / "ours.tif", tmp_path / "theirs.zarr", 1) == 3 / 4
