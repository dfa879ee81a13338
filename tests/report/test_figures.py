from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_jax.report import canvas, figures
from wsss_jax.report.legend import Legend

CLASSES = ("epithelium", "necrosis", "stroma")
PALETTE = ((205, 51, 51), (0, 255, 0), (255, 165, 0), (255, 255, 255))
LEGEND = Legend(CLASSES, PALETTE)
TILE = 224


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def cell(sheet: np.ndarray, column: int, row: int, *, title: bool) -> np.ndarray:
    """The pixels of one cell of a sheet of 224-pixel cells with captions."""
    top = canvas.MARGIN + canvas.HEADING_HEIGHT + (canvas.TITLE_HEIGHT if title else 0)
    top += row * (canvas.CAPTION_HEIGHT + TILE + canvas.GAP) + canvas.CAPTION_HEIGHT
    left = canvas.MARGIN + column * (TILE + canvas.GAP)
    return sheet[top : top + TILE, left : left + TILE]


def has_color(sheet: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((sheet == color).all(axis=-1).any())


def assert_alike(shown: np.ndarray, photograph: np.ndarray) -> None:
    """Photographs lose colors to the palette; this grain is far harder on it than tissue."""
    assert np.abs(shown.astype(int) - photograph).mean() < 8


def assert_painted(shown: np.ndarray, mask: np.ndarray) -> None:
    """A cell has exactly the palette's colors, but for the numbers of classes: dark on white."""
    expected = np.broadcast_to(figures.colorize(mask, PALETTE), shown.shape)
    other = (shown != expected).any(axis=-1)
    assert (shown[other].max(axis=-1) == shown[other].min(axis=-1)).all()
    classes = np.unique(mask[mask < len(CLASSES)])
    box = (canvas.NUMBER_SIDE + 2) ** 2
    assert len(classes) * 100 < other.sum() <= 2 * len(classes) * box


def photograph(size: int, seed: int = 0) -> np.ndarray:
    """Grainy pink tissue with more colors than a palette of 256 holds."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 25, (size, size, 3))
    return np.clip(np.array([200, 130, 180]) + grain, 0, 255).astype(np.uint8)


def quadrants(size: int) -> np.ndarray:
    """A label map with the classes 0, 1 above and 2, excluded below."""
    mask = np.zeros((size, size), np.uint8)
    half = size // 2
    mask[:half, half:], mask[half:, :half], mask[half:, half:] = 1, 2, 3
    return mask


def row(size: int = TILE, **changes) -> figures.SheetRow:
    masks = {"b4_3": np.zeros((size, size), np.uint8), "bn7": quadrants(size)}
    values = {"name": "patch", "image": photograph(size), "masks": masks, "label": (1, 0, 1)}
    return figures.SheetRow(**{**values, **changes})


def test_colorize():
    colors = figures.colorize(np.array([[0, 3], [2, 1]]), PALETTE)
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors, [[PALETTE[0], PALETTE[3]], [PALETTE[2], PALETTE[1]]])
    with pytest.raises(IndexError):
        figures.colorize(np.array([[4]]), PALETTE)


def test_classes_are_tinted_and_excluded_pixels_are_not():
    image = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 3]])
    tinted = figures.tint(image, mask, PALETTE, alpha=0.5)
    # round half to even: (100 + 205) / 2 and (100 + 51) / 2
    np.testing.assert_array_equal(tinted, [[[152, 76, 76], [50, 178, 50], [100, 100, 100]]])
    untinted = figures.tint(image, mask, PALETTE, alpha=1, excluded=0)
    np.testing.assert_array_equal(untinted, [[[100] * 3, PALETTE[1], PALETTE[3]]])


def test_contact_sheet_places_patch_masks_and_overlay(tmp_path):
    path = tmp_path / "new" / "sheet.png"
    rows = [row(), row(image=photograph(TILE, seed=1), truth=None)]
    figures.write_contact_sheet(path, rows, LEGEND)
    sheet = pixels(path)
    assert_alike(cell(sheet, 0, 1, title=False), rows[1].image)
    assert_painted(cell(sheet, 1, 0, title=False), np.zeros((TILE, TILE), np.uint8))
    assert_painted(cell(sheet, 2, 1, title=False), quadrants(TILE))
    tinted = figures.tint(rows[0].image, quadrants(TILE), PALETTE)
    assert_alike(cell(sheet, 3, 0, title=False), tinted)
    assert list(path.parent.iterdir()) == [path]


def test_small_masks_are_enlarged_without_new_colors(tmp_path):
    figures.write_contact_sheet(tmp_path / "sheet.png", [row(size=32)], LEGEND)
    painted = cell(pixels(tmp_path / "sheet.png"), 2, 0, title=False)
    assert_painted(painted, quadrants(TILE))


def test_page_is_white_with_dark_text(tmp_path):
    figures.write_contact_sheet(tmp_path / "sheet.png", [row()], LEGEND, title="Masks")
    sheet = pixels(tmp_path / "sheet.png")
    title = sheet[: canvas.MARGIN + canvas.TITLE_HEIGHT]
    assert (title[:10] == 255).all()
    assert has_color(title, canvas.INK)
    assert (title.min(axis=-1) == title.max(axis=-1)).all()  # only grays
    assert 0.01 < (title < 255).mean() < 0.1


def test_legend_names_all_classes_and_the_excluded_only_if_shown(tmp_path):
    without = row(masks={"bn7": np.zeros((TILE, TILE), np.uint8)}, label=(0, 0, 0))
    for name, rows in (("with.png", [row(label=(0, 0, 0))]), ("without.png", [without])):
        figures.write_contact_sheet(tmp_path / name, rows, LEGEND)
    legends = {
        name: pixels(tmp_path / name)[-canvas.MARGIN - canvas.LEGEND_HEIGHT + canvas.GAP :]
        for name in ("with.png", "without.png")
    }
    for legend in legends.values():
        assert all(has_color(legend, color) for color in PALETTE[:3])
    right_end = {
        name: np.flatnonzero((legend < 255).any(axis=(0, 2))).max()
        for name, legend in legends.items()
    }
    assert right_end["with.png"] > right_end["without.png"] + 100


def test_label_swatches_show_the_present_classes(tmp_path):
    figures.write_contact_sheet(tmp_path / "sheet.png", [row(label=(0, 1, 0))], LEGEND)
    top = canvas.MARGIN + canvas.HEADING_HEIGHT
    caption = pixels(tmp_path / "sheet.png")[top : top + canvas.CAPTION_HEIGHT - 1]
    assert has_color(caption, PALETTE[1])
    assert not has_color(caption, PALETTE[0])


def test_long_names_stay_on_the_page_and_off_the_score(tmp_path):
    mask = {"prediction": quadrants(TILE)}
    captions = {}
    for name in ("short", "a name of a patch " * 20):
        rows = [row(name=name, masks=mask, truth=quadrants(TILE), label=None, miou=0.5)]
        figures.write_evaluation_sheet(tmp_path / "sheet.png", rows, LEGEND)
        top = canvas.MARGIN + canvas.HEADING_HEIGHT
        captions[name] = pixels(tmp_path / "sheet.png")[top : top + canvas.CAPTION_HEIGHT - 1]
    short, long = captions.values()
    np.testing.assert_array_equal(short[:, -canvas.MARGIN - 90 :], long[:, -canvas.MARGIN - 90 :])
    assert (long[:, -canvas.MARGIN :] == 255).all()


def test_contact_sheet_shows_the_truth_before_the_overlay(tmp_path):
    rows = [row(truth=np.full((TILE, TILE), 2, np.uint8))]
    figures.write_contact_sheet(tmp_path / "sheet.png", rows, LEGEND)
    truth = cell(pixels(tmp_path / "sheet.png"), 3, 0, title=False)
    assert_painted(truth, np.full((TILE, TILE), 2))


def test_rows_of_other_columns_are_refused(tmp_path):
    rows = [row(), row(truth=quadrants(TILE))]
    with pytest.raises(ValueError, match="same columns"):
        figures.write_contact_sheet(tmp_path / "sheet.png", rows, LEGEND)
    with pytest.raises(ValueError, match="at least one row"):
        figures.write_contact_sheet(tmp_path / "sheet.png", [], LEGEND)
    assert not list(tmp_path.iterdir())


def test_eight_rows_stay_below_a_megabyte(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        row(image=photograph(TILE, seed), masks={"bn7": rng.integers(0, 4, (TILE, TILE), np.uint8)})
        for seed in range(8)
    ]
    figures.write_contact_sheet(tmp_path / "sheet.png", rows, LEGEND)
    assert (tmp_path / "sheet.png").stat().st_size < 1 << 20


def test_evaluation_sheet_keeps_the_order_of_rows(tmp_path):
    truth, prediction = quadrants(TILE), np.ones((TILE, TILE), np.uint8)
    rows = [
        row(masks={"prediction": mask}, truth=truth, miou=miou)
        for mask, miou in ((prediction, 0.1), (truth, 1.0))
    ]
    figures.write_evaluation_sheet(tmp_path / "worst.png", rows, LEGEND, title="Worst first")
    sheet = pixels(tmp_path / "worst.png")
    for index, predicted in enumerate((prediction, truth)):
        for column, mask in ((1, truth), (2, predicted)):
            shown = cell(sheet, column, index, title=True)
            assert_painted(shown, mask)


def test_demo_banner_is_wide(tmp_path):
    rows = [row(truth=quadrants(TILE)) for _ in range(4)]
    figures.write_demo_banner(tmp_path / "banner.png", rows, LEGEND)
    height, width, _ = pixels(tmp_path / "banner.png").shape
    assert width > 2 * height
    assert all(has_color(pixels(tmp_path / "banner.png"), color) for color in PALETTE)


def test_confusion_figure_shades_by_share(tmp_path):
    confusion = np.array([[90, 10, 0, 0], [0, 10**6, 0, 0], [0, 0, 0, 0]])
    path = tmp_path / "new" / "confusion.png"
    figures.write_confusion_matrix(path, confusion, CLASSES)
    without = pixels(path)
    full, none = (8, 48, 107), (247, 251, 255)  # the ends of matplotlib's Blues
    assert has_color(without, full)
    assert has_color(without, none)
    confusion[0, 3] = 5
    figures.write_confusion_matrix(path, confusion, CLASSES)
    assert pixels(path).shape[1] > without.shape[1]  # a column for "excluded"


def test_counts_are_short():
    shown = [figures.format_pixels(count) for count in (0, 512, 1000, 99_940, 999_999, 1_253_000)]
    assert shown == ["0", "512", "1 k", "99.9 k", "1 M", "1.25 M"]


def test_training_curves_draw_a_panel_per_figure(tmp_path):
    history = [
        {"epoch": epoch, "loss": 1 / (epoch + 1), "iou": [0.1 * epoch, float("nan")]}
        for epoch in range(4)
    ]
    history[3]["miou"] = 0.4  # validated in the last epoch only
    figures.write_training_curves(tmp_path / "three.png", history, ("a", "b"))
    record = {"epoch": 0, "loss": 1.0, "restored": [{"reason": "collapsed"}]}
    figures.write_training_curves(tmp_path / "one.png", [record])
    three, one = pixels(tmp_path / "three.png"), pixels(tmp_path / "one.png")
    assert three.shape[1] == 3 * one.shape[1]
    blue = (0, 114, 178)
    thirds = np.array_split(three, 3, axis=1)
    assert all(has_color(third, blue) for third in thirds)
    with pytest.raises(ValueError, match="no epoch"):
        figures.write_training_curves(tmp_path / "none.png", [])
