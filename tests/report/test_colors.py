import dataclasses
import itertools

import numpy as np
import pytest

from data.dataset import load_dataset
from wsss_jax.report import colors

WHITE = (255, 255, 255)


def lab(linear):
    """CIELAB (D65) of linear sRGB, (..., 3)."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    xyz = linear @ to_xyz.T / (0.95047, 1, 1.08883)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(one, other):
    """The color difference of two CIELAB colors (Sharma, Wu and Dalal 2005)."""
    (L1, a1, b1), (L2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25**7))
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    dh = (h2 - h1 + 180) % 360 - 180 if c1 * c2 else 0
    h = np.radians(h1 + dh / 2 if c1 * c2 else h1 + h2)
    dH, L, C = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(dh / 2)), (L1 + L2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(h - np.radians(30)) + 0.24 * np.cos(2 * h)
    t += 0.32 * np.cos(3 * h + np.radians(6)) - 0.2 * np.cos(4 * h - np.radians(63))
    dL = (L2 - L1) / (1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2))
    dC, dH = (c2 - c1) / (1 + 0.045 * C), dH / (1 + 0.015 * C * t)
    turn = np.radians(60 * np.exp(-(((np.degrees(h) - 275) / 25) ** 2)))
    r = -2 * np.sqrt(C**7 / (C**7 + 25**7)) * np.sin(turn)
    return float(np.sqrt(dL**2 + dC**2 + dH**2 + r * dC * dH))


def least_difference(palette):
    """The smallest difference of all pairs, for the vision that tells them apart worst."""
    return min(
        ciede2000(one, other)
        for vision in colors.VISIONS
        for one, other in itertools.combinations(
            lab(colors.simulate_vision(np.array(palette), vision)), 2
        )
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),  # of the table of Sharma, Wu and Dalal
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_measure_is_ciede2000(one, other, expected):
    assert ciede2000(one, other) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("count", "least"), [(2, 20), (3, 15), (4, 11), (8, 11), (12, 10), (20, 9)]
)
def test_everybody_can_tell_the_colors_apart(count, least):
    assert least_difference([*colors.make_colorblind_palette(count), WHITE]) > least


def test_some_people_hardly_tell_the_shipped_palettes_apart():
    """The reason for another palette."""
    for name in ("luad_histoseg", "bcss_wsss"):
        assert least_difference(load_dataset(name, "").palette) < 6


def test_any_number_of_classes_has_colors_of_its_own():
    assert colors.make_colorblind_palette(3) == colors.OKABE_ITO[:3]
    many = colors.make_colorblind_palette(100)
    assert len({*many, WHITE}) == 101 and many[:8] == colors.OKABE_ITO
    assert all(0 <= channel <= 255 for color in many for channel in color)


def test_a_scheme_changes_colors_and_no_names():
    dataset = load_dataset("luad_histoseg", "")
    assert colors.make_legend(dataset, "dataset") == (dataset.classes, dataset.palette)
    other = colors.make_legend(dataset, "colorblind")
    assert other.palette == (*colors.OKABE_ITO[:4], dataset.palette[-1])
    assert other.names == dataset.classes


def test_what_is_excluded_has_a_color_of_its_own():
    dataset = load_dataset("luad_histoseg", "")
    for count, excluded in (
        (8, (0, 0, 0)),
        (8, (1, 0, 2)),
        (2, colors.OKABE_ITO[1]),
        (4, (9, 9, 9)),
    ):
        made = dataclasses.replace(
            dataset,
            classes=tuple(map(str, range(count))),
            palette=(*((n, n, 0) for n in range(count)), excluded),
            roles={},
        )
        *classes, last = colors.make_legend(made, "colorblind").palette
        assert tuple(classes) == colors.make_colorblind_palette(count)
        assert min(np.abs(np.subtract(classes, last)).max(axis=1)) > 30
