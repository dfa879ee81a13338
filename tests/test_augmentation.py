from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage

from configs import base
from data import synthetic
from tests.conftest import tiny_phase2
from tests.golden import augmentation as golden
from wsss_jax import config as config_lib
from wsss_jax import parallel
from wsss_jax.augmentation import color, examples
from wsss_jax.augmentation.blur import gaussian_blur
from wsss_jax.augmentation.geometry import resample
from wsss_jax.augmentation.stain import jitter_stains
from wsss_jax.errors import InputError
from wsss_jax.methods import phase2
from wsss_jax.training.step import compute_gradients, make_state

EXCLUDED = 4


def _augment_config(**fields):
    config = base.phase2("m").augment
    config.update({"flip_horizontal": 0.0, "flip_vertical": 0.0, "blur": 0.0} | fields)
    return config


# In one program, as in training: one operation at a time, compiling takes many times as long.
_resample = jax.jit(resample, static_argnums=4)


@partial(jax.jit, static_argnums=3)
def _augment_only(key, image, masks, config, position):
    return examples.augment(key, image, masks, config, position)


def test_flips_apply_to_masks():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    masks = np.stack([image[..., 0], image[..., 1]], axis=1)
    key = jax.random.key(0)
    both = config_lib.freeze(_augment_config(flip_horizontal=1.0))
    flipped, mask = _augment_only(key, image, masks, both, np.arange(4))
    np.testing.assert_array_equal(flipped, image[:, :, ::-1])
    np.testing.assert_array_equal(mask, masks[..., ::-1])
    both = config_lib.freeze(_augment_config(flip_vertical=1.0))
    flipped, mask = _augment_only(key, image, masks, both, np.arange(4))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(mask, masks[:, :, ::-1])


def test_flip_probability_and_independence_of_devices():
    image = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None], (400, 8, 8, 3)).copy()
    image[:, :, 0] = 99
    key, config = jax.random.key(1), _augment_config(flip_horizontal=0.5, blur=0.5)
    config, position = config_lib.freeze(config), np.arange(400)
    whole = np.asarray(_augment_only(key, image, None, config, position)[0])
    share = float((whole[:, 0, -1, 0] > whole[:, 0, 0, 0]).mean())
    assert 0.4 < share < 0.6
    part, _ = _augment_only(key, image[200:], None, config, position[200:])
    np.testing.assert_array_equal(part, whole[200:])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.95])
def test_blur_equals_that_of_pillow(sigma):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    ours = np.asarray(jax.jit(gaussian_blur)(image, sigma), int)
    pillows = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), int)
    # Pillow rounds after each of its six passes.
    assert np.abs(ours - pillows).max() <= 3 and np.abs(ours - pillows).mean() < 1.1


@pytest.fixture(scope="module")
def recorded():
    with np.load(golden.FILE) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_colors_equal_those_of_torchvision(name, recorded):
    image = jnp.asarray(golden.make_image(), jnp.float32) / 255
    adjust = jax.jit(getattr(color, f"adjust_{name}"))
    values = golden.TURNS if name == "hue" else golden.FACTORS
    for value, expected in zip(values, recorded[name], strict=True):
        np.testing.assert_allclose(adjust(image, value), expected, atol=3e-6, err_msg=f"{value}")


def test_color_jitter_is_the_four_steps_in_a_row(recorded):
    image = jnp.asarray(golden.make_image(), jnp.float32) / 255
    jitter = jax.jit(color.jitter_color)
    np.testing.assert_allclose(jitter(image, 1, 1, 1, 0), image, atol=1e-6)
    only = jitter(image, golden.FACTORS[1], 1, 1, golden.TURNS[0])
    expected = jax.jit(color.adjust_hue)(recorded["brightness"][1], golden.TURNS[0])
    np.testing.assert_allclose(only, expected, atol=1e-5)


def test_stains_equal_those_of_scikit_image(recorded):
    image = recorded["before_stain"]
    changed = jax.jit(jitter_stains)(
        image, np.float32(golden.STAIN_FACTORS), np.float32(golden.STAIN_OFFSETS)
    )
    np.testing.assert_allclose(changed, recorded["stain"], atol=3e-6)
    assert np.abs(np.asarray(changed) - image).max() > 0.05


def test_stains_that_do_not_change_give_the_image_back():
    """Also black, white and colors that no stain gives."""
    image = np.float32(golden.make_image()) / 255
    unchanged = jax.jit(jitter_stains)(image, np.ones(3, np.float32), np.zeros(3, np.float32))
    np.testing.assert_allclose(unchanged, image, atol=3e-6)


@pytest.mark.parametrize(("degrees", "scale"), [(17, 1.0), (-130, 0.6), (46, 1.7)])
def test_resampling_equals_that_of_scipy(degrees, scale):
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (21, 30, 3), np.uint8)
    masks = rng.integers(0, 4, (2, 21, 30), np.uint8)
    angle = np.radians(degrees)
    ours, our_masks = _resample(image, masks, angle, scale, EXCLUDED)
    # Rows down: a turn that is seen as counterclockwise.
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    matrix, middle = np.array([[cos, sin], [-sin, cos]]), np.array([10.0, 14.5])
    at = np.einsum("ij,jhw->ihw", matrix, np.indices((21, 30)) - middle[:, None, None])
    at += middle[:, None, None]
    for channel in range(3):
        values = image[..., channel].astype(float)
        scipys = ndimage.map_coordinates(values, at, order=1, mode="reflect")
        np.testing.assert_allclose(ours[..., channel], scipys, atol=0.501)
    nearest = np.rint(at).astype(int)
    inside = ((nearest >= 0) & (nearest < [[[21]], [[30]]])).all(axis=0)
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-4).all(axis=0)  # of no two pixels the nearest
    row, column = np.clip(nearest, 0, [[[20]], [[29]]])
    expected = np.where(inside, masks[:, row, column], EXCLUDED)
    np.testing.assert_array_equal(our_masks[:, clear], expected[:, clear])
    assert clear.mean() > 0.9 and inside.mean() > 0.3


def test_a_quarter_turn_and_no_turn_are_exact():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    masks = rng.integers(0, 4, (1, 16, 16), np.uint8)
    for turns in (0, 1, 3):
        moved, moved_masks = _resample(image, masks, turns * np.pi / 2, 1.0, EXCLUDED)
        np.testing.assert_array_equal(moved, np.rot90(image, turns))
        np.testing.assert_array_equal(moved_masks, np.rot90(masks, turns, (1, 2)))


@partial(jax.jit, static_argnums=1)
def _augment_frozen(batch, config):
    key = jax.random.key(0)
    move = examples.make_move(config, EXCLUDED)
    batch = batch if move is None else move(key, batch)
    return examples.augment(key, batch["image"], batch.get("masks"), config, batch["position"])


def _augment_batch(batch, config):
    """What training does to a batch: it is moved, then augmented."""
    return _augment_frozen(batch, config_lib.freeze(config))


_SQUARE = {"flip_horizontal": 0.5, "flip_vertical": 0.5, "transpose": 0.5}
_ALL = _SQUARE | {"affine": 0.8, "color": 0.5, "stain": 0.5, "blur": 0.5}


def test_masks_move_exactly_like_images():
    """The image is black and white where the mask is 0 and 3, so it says what its mask must be."""
    rng = np.random.default_rng(4)
    masks = np.zeros((16, 1, 32, 32), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, 16, 2)
        mask[:, top : top + 16, left : left + 12] = 3
    image = jnp.asarray(np.repeat(masks[:, 0, ..., None] * np.uint8(85), 3, axis=-1))
    batch = {"image": image, "masks": jnp.asarray(masks), "position": jnp.arange(16)}
    config = _augment_config(**_SQUARE, affine=1.0)
    moved, moved_masks = map(np.asarray, _augment_batch(batch, config))
    assert all((a != b).any() for a, b in zip(moved, np.asarray(image)))
    # Elsewhere the nearest pixel and the mean of four are of different pixels.
    pure = ((moved == 0) | (moved == 255)).all(axis=-1) & (moved_masks[:, 0] != EXCLUDED)
    assert pure.mean() > 0.6
    np.testing.assert_array_equal(moved[pure][:, 0] // 85, moved_masks[:, 0][pure])
    assert (moved_masks[:, 0][pure] == 3).mean() > 0.03  # both were there to be compared


def test_flips_and_transpositions_are_the_symmetries_of_the_square():
    rng = np.random.default_rng(5)
    one = rng.integers(0, 256, (5, 5, 3), np.uint8)
    image = jnp.asarray(np.repeat(one[None], 200, axis=0))
    batch = {"image": image, "masks": image[..., 0][:, None], "position": jnp.arange(200)}
    moved, masks = _augment_batch(batch, _augment_config(**_SQUARE))
    np.testing.assert_array_equal(masks[:, 0], moved[..., 0])
    symmetries = [np.rot90(side, i).tobytes() for side in (one, one[::-1]) for i in range(4)]
    seen = [np.asarray(x).tobytes() for x in moved]
    counts = [seen.count(symmetry) for symmetry in symmetries]
    assert sum(counts) == 200 and min(counts) >= 10  # 25 each on average


def test_an_augmentation_leaves_the_random_numbers_of_others():
    rng = np.random.default_rng(6)
    image = jnp.asarray(rng.integers(0, 256, (32, 8, 8, 3), np.uint8))
    masks = image[..., 0][:, None]
    batch = {"image": image, "masks": masks, "position": jnp.arange(32)}
    flips = {"flip_horizontal": 0.5, "flip_vertical": 0.5}

    def augment(**fields):
        return map(np.asarray, _augment_batch(batch, _augment_config(**flips, **fields)))

    plain, plain_masks = augment()
    colored, colored_masks = augment(color=0.5)
    np.testing.assert_array_equal(colored_masks, plain_masks)
    both, both_masks = augment(color=0.5, stain=0.5)
    np.testing.assert_array_equal(both_masks, plain_masks)
    is_colored = (colored != plain).any(axis=(1, 2, 3))
    is_stained = (both != colored).any(axis=(1, 2, 3))
    assert 5 < is_colored.sum() < 27 and 5 < is_stained.sum() < 27
    assert 2 < (is_colored & is_stained).sum() < min(is_colored.sum(), is_stained.sum())


def test_what_happens_to_an_example_does_not_depend_on_its_device():
    patches = [synthetic.draw_patch(np.random.default_rng(i), 32) for i in range(8)]
    images, masks = (jnp.asarray(np.stack(arrays)) for arrays in zip(*patches))
    batch = {"image": images, "masks": masks[:, None], "position": jnp.arange(8)}
    config = _augment_config(**_ALL)
    whole = _augment_batch(batch, config)
    elsewhere = {name: jnp.roll(array, 3, axis=0) for name, array in batch.items()}
    for one, other in zip(whole, _augment_batch(elsewhere, config)):
        np.testing.assert_array_equal(np.roll(one, 3, axis=0), other)
    assert (whole[0] != images).any(axis=(1, 2, 3)).all()


def test_batches_without_masks_are_moved():
    batch = {"image": jnp.zeros((2, 8, 8, 3), jnp.uint8), "position": jnp.arange(2)}
    move = examples.make_move(_augment_config(affine=1.0, transpose=0.5), EXCLUDED)
    moved = jax.eval_shape(move, jax.random.key(0), batch)
    assert moved.keys() == batch.keys() and moved["image"].shape == (2, 8, 8, 3)


def test_amounts_stay_in_their_ranges():
    """Brightness alone, at an image of one gray: the factor can be read from it."""
    image = jnp.full((300, 4, 4, 3), 100, jnp.uint8)
    rest = {"contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    config = _augment_config(color=0.5, brightness=0.2, **rest)
    changed, _ = _augment_batch({"image": image, "position": jnp.arange(300)}, config)
    value = np.asarray(changed[:, 0, 0, 0], int)
    assert 110 < (value == 100).sum() < 200
    assert 80 <= value.min() < 85 and 115 < value.max() <= 120
    config = _augment_config(stain=1.0, stain_factor=0.0, stain_offset=0.1)
    changed, _ = _augment_batch({"image": image, "position": jnp.arange(300)}, config)
    density = -np.log10(np.asarray(changed[:, 0, 0], float) / 100)
    amounts = density @ np.linalg.inv([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    assert np.abs(amounts).max() < 0.1 + 0.02  # of rounding to 8 bits
    assert amounts.min() < -0.09 and amounts.max() > 0.09


def test_pixels_that_are_turned_out_of_a_patch_are_not_counted():
    """The loss of a batch is divided by the pixels that it has after it was turned."""
    config = tiny_phase2("unused", layers=("b5_2", "bn7"))
    config.augment.affine, config.augment.scale = 1.0, (0.6, 0.8)
    rng = np.random.default_rng(8)
    batch = {
        "image": rng.integers(0, 256, (4, 16, 16, 3), np.uint8),
        "masks": np.zeros((4, 2, 16, 16), np.uint8),
        "weight": np.float32([1, 1, 1, 0]),
        "position": np.arange(4, dtype=np.int32),
    }

    def loss(variables, batch, totals, values, rng):
        is_counted = (batch["masks"] < 4) * batch["weight"][:, None, None, None]
        share = is_counted.sum(axis=(0, 2, 3)) / totals["pixels"]
        metrics = {"loss": share[0], "pixels": totals["pixels"][0]}
        return variables["params"]["w"] * share.mean(), ({}, metrics)

    task = phase2.make_task(config, 4, 10)._replace(loss=loss)
    state = make_state(task, {"params": {"w": jnp.float32(1)}})
    step = jax.pmap(
        lambda *arguments: compute_gradients(task, *arguments),
        parallel.AXIS,
        in_axes=(None, 0, None, None),
    )
    shard = {name: array[None] for name, array in batch.items()}
    _, _, metrics = step(state, shard, {}, jax.random.key(1))
    assert float(metrics["loss"][0]) == 1
    assert 3 * 256 * 0.3 < float(metrics["pixels"][0]) < 3 * 256 * 0.7  # 0.36 to 0.64 of them


def test_only_what_moves_pixels_out_is_done_before_they_are_counted():
    config = base.phase2("m").augment
    assert examples.make_move(config, EXCLUDED) is None
    config.affine = 0.1
    assert examples.make_move(config, EXCLUDED) is not None
    assert phase2.make_task(tiny_phase2("m"), 4, 10).prepare is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": (1.2, 0.8)}, "augment.scale is (1.2, 0.8): give the smaller number first"),
        ({"affine": 0.5, "rotation": 0, "scale": (1, 1)}, "augment.affine is 0.5 but"),
        ({"stain": 1.0, "stain_factor": 0, "stain_offset": 0.0}, "set --config.augment.stain=0"),
        ({"mosaic": 0.7, "paste": 0.4}, "0.7 and 0.4, together over 1"),
        ({"paste_radius": (0.5, 0.2)}, "augment.paste_radius is (0.5, 0.2)"),
        ({"hue": 0.6}, "config.augment.hue is 0.6: it must be a number at least 0, at most 0.5"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, words):
    config = base.phase2("runs/masks")
    with config.augment.ignore_type():
        config.augment.update(fields)
    with pytest.raises(InputError) as caught:
        config_lib.validate(config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_phase_1_has_no_masks_to_compose():
    config = base.phase1("luad_histoseg")
    config.augment.affine = config.augment.color = config.augment.stain = 0.5
    config_lib.validate(config)
    config.augment.mosaic = 0.5
    with pytest.raises(InputError, match="the job 'phase1' has no such field"):
        config_lib.validate(config)
