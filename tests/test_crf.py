"""The dense CRF against a float64 mean field of all pairs, and against what it is for."""

from functools import partial

import jax
import numpy as np
import pytest

from wsss_jax import bilateral
from wsss_jax.crf import DenseCrf, refine, refine_probabilities

WIDE = DenseCrf(10, 3.0, 3.0, 80.0, 13.0, 10.0)  # of SC-CAM
NARROW = DenseCrf(5, 1.5, 10.0, 1.5, 30.0, 20.0, truncation=6.0)  # a window inside the image


def _softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _mean_field(unary, image, crf):
    """The update of the paper with matrices of all pairs of pixels, for one image."""
    height, width, classes = unary.shape
    position = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(float)
    color = image.reshape(-1, 3).astype(float)

    def square(x):
        return ((x[:, None] - x[None]) ** 2).sum(axis=-1)

    def normalize(kernel):
        scale = kernel.sum(axis=1) ** -0.5
        return scale[:, None] * kernel * scale

    smooth = normalize(np.exp(-square(position / crf.gaussian_sxy) / 2))
    alike = square(position / crf.bilateral_sxy) + square(color / crf.bilateral_srgb)
    kernel = crf.gaussian_weight * smooth + crf.bilateral_weight * normalize(np.exp(-alike / 2))
    start = -unary.reshape(-1, classes).astype(float)
    q = _softmax(start)
    for _ in range(crf.iterations):
        q = _softmax(start + kernel @ q)
    return q.reshape(unary.shape)


def _draw(size, classes, seed, images=2):
    """Smooth regions of classes and colors with noise: unary energies and images."""
    rng = np.random.default_rng(seed)
    height, width = size

    def draw_fields(channels):
        coarse = rng.normal(size=(images, 4, 4, channels))
        return np.asarray(jax.image.resize(coarse, (images, height, width, channels), "bilinear"))

    logits = 2 * draw_fields(classes) + 0.5 * rng.normal(size=(images, height, width, classes))
    image = 128 + 50 * draw_fields(3) + 8 * rng.normal(size=(images, height, width, 3))
    unary = -np.log(np.maximum(_softmax(logits.reshape(-1, classes)), 1e-5))
    return unary.reshape(logits.shape).astype(np.float32), image.clip(0, 255).astype(np.uint8)


_refine = jax.jit(refine, static_argnames="crf")  # traced once for every kernel and size


def _run(unary, image, crf):
    return np.asarray(_refine(unary, image, crf=crf))


def _run_anew(unary, image, crf):
    return np.asarray(jax.jit(partial(refine, crf=crf))(unary, image))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("size", "classes", "crf"),
    [
        ((24, 24), 4, DenseCrf()),
        ((24, 24), 3, WIDE),
        ((36, 20), 4, NARROW),
        ((17, 40), 2, NARROW),
        ((13, 29), 6, WIDE),
        ((9, 40), 3, DenseCrf(bilateral_srgb=3.0)),
        ((1, 30), 3, WIDE),
        ((1, 1), 2, DenseCrf()),
        ((8, 8), 1, DenseCrf()),
    ],
)
def test_the_result_is_that_of_all_pairs(size, classes, crf, seed):
    unary, image = _draw(size, classes, seed)
    refined = _run(unary, image, crf)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(axis=-1), 1, atol=1e-5)
    for index in range(len(unary)):
        expected = _mean_field(unary[index], image[index], crf)
        np.testing.assert_allclose(refined[index], expected, atol=1e-4)


def test_what_is_computed_in_parts_is_the_same(monkeypatch):
    unary, image = _draw((36, 20), 3, 2, images=1)
    # Each iteration adds to the rounding of the products of WIDE, which depends on the processor.
    wide = WIDE._replace(iterations=2)
    for crf, form in ((NARROW, "_sum_all"), (wide, "_sum_shifts")):
        with monkeypatch.context() as patch:
            patch.setattr(bilateral, form, None)  # the other form is chosen
            whole = _run_anew(unary, image, crf)
            patch.setattr(bilateral, "HELD", 0)
            patch.setattr(bilateral, "AT_ONCE", 20_000)  # 16 of 126 shifts
            patch.setattr(bilateral, "CHUNK", 7 * 720)  # 7 rows of 720, the last ones overlap
            parts = _run_anew(unary, image, crf)
        np.testing.assert_allclose(parts, whole, atol=2e-6)


def test_a_class_that_is_impossible_is_as_if_it_were_not_there():
    for size, crf in (((24, 24), DenseCrf()), ((36, 20), NARROW)):  # of programs that there are
        unary, image = _draw(size, 4, 3)
        unary[0, :, :, 1] = np.inf
        unary[1, :, :, [0, 3]] = np.inf
        refined = _run(unary, image, crf)
        assert not refined[0, :, :, 1].any() and not refined[1, :, :, [0, 3]].any()
        for index, rest in ((0, [0, 2, 3]), (1, [1, 2])):
            alone = _mean_field(unary[index][:, :, rest], image[index], crf)
            np.testing.assert_allclose(refined[index][:, :, rest], alone, atol=1e-4)


def test_images_do_not_depend_on_their_batch():
    unary, image = _draw((36, 20), 4, 9)
    whole = _run(unary, image, NARROW)
    for index in range(2):
        alone = _run(unary[index : index + 1], image[index : index + 1], NARROW)
        np.testing.assert_array_equal(alone[0], whole[index])


def test_no_iterations_are_a_softmax():
    unary, image = _draw((6, 7), 3, 4)
    refined = _run(unary, image, DenseCrf(iterations=0))
    np.testing.assert_array_equal(refined, jax.nn.softmax(-unary))


def test_probabilities_begin_at_the_clip_and_classes_of_zeros_stay_out():
    unary, image = _draw((12, 12), 4, 5)
    crf = DenseCrf()._replace(clip=1e-3)
    probabilities = np.exp(-unary)
    probabilities[:, 3:, 3:, 0] = 0  # here less than probable, not impossible
    probabilities[0, :, :, 2] = 0
    refine_them = jax.jit(partial(refine_probabilities, crf=crf))
    refined = np.asarray(refine_them(probabilities, image))
    shares = probabilities / probabilities.sum(axis=-1, keepdims=True)
    energies = -np.log(np.maximum(shares, 1e-3))
    energies[0, :, :, 2] = np.inf
    for index in range(2):
        expected = _mean_field(energies[index], image[index], crf)
        np.testing.assert_allclose(refined[index], expected, atol=1e-4)
    scaled = refine_them(probabilities * 1e-6, image)
    np.testing.assert_allclose(scaled, refined, atol=1e-4)
    nothing = refine_them(np.zeros_like(probabilities), image)
    np.testing.assert_allclose(nothing, 0.25, atol=1e-6)


@pytest.mark.parametrize("crf", [NARROW, WIDE])
def test_nothing_to_go_by_stays_undecided(crf):
    image = np.full((1, 24, 20, 3), 77, np.uint8)  # of the size of `test_symmetries`
    refined = _run(np.full((1, 24, 20, 3), 1.5, np.float32), image, crf)
    np.testing.assert_allclose(refined, 1 / 3, atol=1e-5)


@pytest.mark.parametrize("crf", [NARROW, WIDE, NARROW._replace(bilateral_sxy=4.0, stride=2)])
def test_symmetries(crf):
    unary, image = _draw((24, 20), 3, 6, images=1)
    plain = _run(unary, image, crf)
    order = [2, 0, 1]
    np.testing.assert_allclose(_run(unary[..., order], image, crf), plain[..., order], atol=1e-4)
    for axes in ((1,), (2,), (1, 2)):
        flipped = _run(np.flip(unary, axes), np.flip(image, axes), crf)
        np.testing.assert_allclose(np.flip(flipped, axes), plain, atol=1e-4)


def test_a_wrong_pixel_is_corrected_and_an_edge_stays():
    image = np.full((1, 24, 24, 3), 60, np.uint8)
    image[:, :, 11:] = 200
    right = np.zeros((24, 24), int)
    right[:, 11:] = 1
    started = right.copy()
    started[5, 4] = 1  # alone in its region
    started[:, 9:11] = 1  # on the wrong side of the edge
    unary = -np.log(np.where(np.eye(2)[started] > 0, 0.7, 0.3))[None].astype(np.float32)
    refined = _run(unary, image, DenseCrf(5, 1.0, 3.0, 10.0, 20.0, 10.0))
    np.testing.assert_array_equal(refined[0].argmax(axis=-1), right)
    blurred = _run(unary, np.full_like(image, 60), DenseCrf(5, 1.0, 3.0, 10.0, 20.0, 10.0))
    assert (
        blurred[0, :, 9:11].argmax(axis=-1) == 1
    ).all()  # the colors moved it, not the positions


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_shifts_stand_for_all_pixels_of_the_window(stride):
    kernel = bilateral.Kernel(4.0, 20.0, 3.0, stride)
    shifts, itself = bilateral.list_shifts(kernel, (100, 100))
    places = {(down, across) for down, across, _ in shifts}
    assert len(places) == len(shifts) and not places & {(-y, -x) for y, x in places}
    pixels = stride**2 * (itself + 2 * sum(weight for *_, weight in shifts))
    assert pixels == pytest.approx(np.pi * 12**2, rel=0.03)
    assert itself == pytest.approx(1 / stride**2)
    spread = 2 * sum(w * (y**2 + x**2) * np.exp(-(y**2 + x**2) / 32) for y, x, w in shifts)
    weight = itself + 2 * sum(w * np.exp(-(y**2 + x**2) / 32) for y, x, w in shifts)
    # The mean square distance of a Gaussian with deviation 4, cut off at 3 deviations.
    cut = np.exp(-4.5)
    assert spread / weight == pytest.approx(32 * (1 - 5.5 * cut) / (1 - cut), rel=0.03)
    (inside, _) = bilateral.list_shifts(kernel, (5, 7))
    assert all(down < 5 and abs(across) < 7 for down, across, _ in inside)


def test_a_stride_is_close_to_every_pixel():
    unary, image = _draw((64, 64), 4, 7, images=1)
    labels = {n: _run(unary, image, DenseCrf(stride=n)).argmax(axis=-1) for n in (1, 2, 3)}
    assert np.mean(labels[2] != labels[1]) < 0.02 and np.mean(labels[3] != labels[1]) < 0.04


def test_beside_pydensecrf():
    """It filters on a permutohedral lattice, which is not exact: a few pixels in a hundred differ.

    So does it from the mean field of all pairs, and no less.
    """
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    size, crf = (40, 48), DenseCrf()
    unary, image = _draw(size, 4, 8, images=1)
    model = densecrf.DenseCRF2D(size[1], size[0], 4)
    model.setUnaryEnergy(np.ascontiguousarray(np.moveaxis(unary[0], -1, 0).reshape(4, -1)))
    model.addPairwiseGaussian(sxy=crf.gaussian_sxy, compat=crf.gaussian_weight)
    model.addPairwiseBilateral(
        sxy=crf.bilateral_sxy, srgb=crf.bilateral_srgb, rgbim=image[0], compat=crf.bilateral_weight
    )
    theirs = np.moveaxis(np.reshape(model.inference(crf.iterations), (4, *size)), 0, -1)
    exact = _mean_field(unary[0], image[0], crf)
    ours = _run(unary, image, crf)[0]
    different = np.mean(ours.argmax(axis=-1) != theirs.argmax(axis=-1))
    lattice = np.mean(exact.argmax(axis=-1) != theirs.argmax(axis=-1))
    assert different < 0.05 and abs(different - lattice) < 0.01
