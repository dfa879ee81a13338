import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_jax.errors import InputError
from wsss_jax.slides.mapping.parts import Layout, Part, Parts

SETTINGS = {"tile": 64, "networks": "0a1b2c3d"}


def _write_parts(folder, maps, **geometry):
    """Writes the parts of maps (1 + channels, height, width): labels, probabilities."""
    channels, height, width = len(maps) - 1, *maps.shape[1:]
    parts = Parts(folder, Layout(width, height, **geometry), SETTINGS, channels=channels)
    for part in parts.missing:
        of_part = maps[:, part.y0 : part.y1, part.x0 : part.x1]
        parts.write(part, of_part[0], of_part[1:])
    return parts


def _draw_maps(channels, width, height):
    return np.random.default_rng(0).integers(0, 256, (1 + channels, height, width), np.uint8)


def test_parts_with_probabilities_also_serve_without(tmp_path):
    maps = _draw_maps(3, 30, 20)
    _write_parts(tmp_path, maps, strip=16, rows=8)
    again = Parts(tmp_path, Layout(30, 20, strip=16, rows=8), SETTINGS)
    assert again.channels == 3 and not again.missing
    np.testing.assert_array_equal(again.read(0, 20), maps[0])
    other = Parts(tmp_path, Layout(30, 20, strip=16, rows=8), {**SETTINGS, "tile": 32})
    assert other.channels == 0 and len(other.missing) == 6


def test_the_layout_covers_a_slide_strip_by_strip():
    assert Layout(10, 7, strip=6, rows=4).parts == [
        Part(0, 0, 6, 4),
        Part(0, 4, 6, 7),
        Part(6, 0, 10, 4),
        Part(6, 4, 10, 7),
    ]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_reading_is_slicing(tmp_path_factory, data):
    width, height = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    strip, rows = data.draw(st.integers(5, 45)), data.draw(st.integers(5, 45))
    maps = _draw_maps(2, width, height)
    parts = _write_parts(tmp_path_factory.mktemp("parts"), maps, strip=strip, rows=rows)
    for _ in range(5):
        y0 = data.draw(st.integers(0, height - 1))
        y1, step = data.draw(st.integers(y0 + 1, height)), data.draw(st.integers(1, 45))
        np.testing.assert_array_equal(parts.read(y0, y1, step), maps[0, y0:y1:step, ::step])
        np.testing.assert_array_equal(
            parts.read_probability(1, y0, y1, step), maps[2, y0:y1:step, ::step]
        )


def test_parts_that_were_not_written_are_missing(tmp_path):
    layout = Layout(10, 7, strip=6, rows=4)
    parts = Parts(tmp_path, layout, SETTINGS)
    first, *rest = parts.missing
    assert [first, *rest] == layout.parts
    parts.write(first, np.ones(first.shape, np.uint8), np.empty((0, *first.shape), np.uint8))
    assert parts.missing == rest
    again = Parts(tmp_path, layout, SETTINGS)
    assert again.missing == rest
    assert again.read(0, 4, 10).tolist() == [[1]]  # no pixel of the missing parts


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
    ],
    ids=["empty", "a piece of the header", "cut", "longer", "zeros", "a bit"],
)
def test_a_damaged_part_is_missing(tmp_path, damage):
    maps = _draw_maps(1, 20, 8)
    _write_parts(tmp_path, maps, rows=4)
    path = sorted(tmp_path.glob("part_*"))[1]
    path.write_bytes(damage(path.read_bytes()))
    assert Parts(tmp_path, Layout(20, 8, rows=4), SETTINGS, channels=1).missing == [
        Part(0, 4, 20, 8)
    ]
    again = _write_parts(tmp_path, maps, rows=4)
    np.testing.assert_array_equal(again.read(0, 8), maps[0])


def test_a_part_damaged_after_opening_is_named(tmp_path):
    parts = _write_parts(tmp_path, _draw_maps(1, 20, 8))
    (path,) = tmp_path.glob("part_*")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        InputError, match=rf"{path.name} is damaged .*the same command again to compute it again"
    ):
        parts.read_probability(0, 0, 8)


def test_parts_of_other_settings_are_removed_and_named(tmp_path, capsys):
    _write_parts(tmp_path, _draw_maps(0, 9, 8), strip=4)
    Parts(tmp_path, Layout(9, 8, strip=4), SETTINGS)
    assert capsys.readouterr().out == ""
    parts = Parts(tmp_path, Layout(9, 8, strip=5), {**SETTINGS, "tile": 32, "stride": 16})
    assert len(parts.missing) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    assert capsys.readouterr().out == (
        f"{tmp_path} holds parts made with another layout, stride, tile: started again\n"
    )


@pytest.mark.parametrize("content", [None, b"", b'{"tile": 6', b"\xff\0"])
def test_parts_of_unknown_settings_are_missing(tmp_path, content):
    _write_parts(tmp_path, _draw_maps(0, 9, 8))
    settings_file = tmp_path / "settings.json"
    settings_file.unlink() if content is None else settings_file.write_bytes(content)
    layout = Layout(9, 8)
    assert Parts(tmp_path, layout, {**SETTINGS, "tile": 32}).missing == layout.parts


def test_the_same_maps_give_the_same_bytes(tmp_path):
    maps = _draw_maps(2, 30, 20)
    contents = []
    for name in ("a", "b"):
        _write_parts(tmp_path / name, maps, strip=16)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 3
