import numpy as np
import pytest

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.tiling import Tiling, choose_stride, place_tiles


@pytest.mark.parametrize(
    "length, tile, stride, expected",
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (11, 4, 2, [0, 2, 4, 6, 7]),
        (9, 4, 4, [0, 4, 5]),
        (4, 4, 1, [0]),
        (3, 4, 2, [0]),
    ],
)
def test_tiles_start_every_stride_and_end_with_the_axis(length, tile, stride, expected):
    np.testing.assert_array_equal(place_tiles(length, tile, stride), expected)
    np.testing.assert_array_equal(Tiling(tile, stride).place(length), expected)


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(InputError, match=rf"stride of {stride} .*1 to 4"):
        Tiling(4, stride)


def test_windows_weight_every_pixel():
    assert (Tiling(6, 6, "flat").weights == 1).all()
    hann = Tiling(6, 6, "hann").weights
    assert (hann > 0).all() and hann.argmax() in (14, 15, 20, 21)
    np.testing.assert_array_equal(hann, hann[::-1, ::-1].T)
    np.testing.assert_array_equal(hann, Tiling(6, 3, "hann").weights)
    with pytest.raises(
        InputError, match=r"no window .gauss.: set --config\.window to flat or hann"
    ):
        Tiling(6, 3, "gauss")


def test_empty_batches_are_refused():
    with pytest.raises(
        InputError, match=r"batch of 0 tiles: set --config\.batch_size to 1 or more"
    ):
        Tiling(6, 3, batch_size=0)


@pytest.mark.parametrize("tile, stride", [(224, 104), (32, 8), (256, 120), (8, 1), (1, 1)])
def test_the_chosen_stride_is_just_under_half_a_tile(tile, stride):
    assert choose_stride(tile) == stride
