import numpy as np
from PIL import Image

from wsss_jax.report.canvas import Layout, Picture, Row, write_page


def test_a_page_shows_its_pictures_and_legend_in_exact_colors(tmp_path):
    red, blue = (205, 51, 51), (65, 105, 225)
    pictures = [
        Picture(np.full((8, 8, 3), color, np.uint8), photograph=False) for color in (red, blue)
    ]
    rows = [Row(pictures, caption="one"), Row(pictures[::-1], caption="two", note="right")]
    path = tmp_path / "new" / "page.png"
    write_page(path, rows, ["left", "right"], [(red, "tumor")], Layout("a title", tile=64))
    page = np.asarray(Image.open(path).convert("RGB"))
    count = {color: int((page == color).all(axis=-1).sum()) for color in (red, blue)}
    assert count[blue] == 2 * 64 * 64
    assert 2 * 64 * 64 < count[red] < 3 * 64 * 64  # and the legend's swatch
    assert (page == 255).all(axis=-1).any() and (page < 100).all(axis=-1).any()  # paper and ink
