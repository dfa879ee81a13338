"""The figures of a run: label maps in color, sheets of patches, confusion matrix, curves.

Every writer takes a path, creates its parents and writes a PNG atomically.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsss_jax.files import atomic_path
from wsss_jax.report import numbers
from wsss_jax.report.canvas import CELL, NUMBER_SIDE, Layout, Picture, Row, write_page
from wsss_jax.report.legend import EXCLUDED_NAME, Color, Legend
from wsss_jax.report.tables import SUMMARY_COLUMNS

CURVE_TITLES = {**SUMMARY_COLUMNS, "iou": "IoU", "class_acc": "class ACC"}

INK = "#222222"
PALE = "#777777"
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLE = {
    "text.parse_math": False,  # names of classes may have dollar signs
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


class SheetRow(NamedTuple):
    """One patch of a sheet.

    Attributes:
      name: of the patch.
      image: (H, W, 3) uint8 RGB.
      masks: heading of a column -> (H, W) label map of 0..C, in the order of the columns.
      truth: (H, W) label map.
      label: (C,) multi-hot.
      miou: 0..1.
    """

    name: str
    image: np.ndarray
    masks: Mapping[str, np.ndarray]
    truth: np.ndarray | None = None
    label: Sequence[int] | None = None
    miou: float | None = None


def colorize(mask: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Paints a label map.

    Args:
      mask: (H, W) integers 0..C.
      palette: C + 1 colors.

    Returns:
      (H, W, 3) uint8 RGB.

    Raises:
      IndexError: a value above C.
    """
    return np.asarray(palette, np.uint8)[mask]


def tint(
    image: np.ndarray,
    mask: np.ndarray,
    palette: Sequence[Color],
    alpha: float = 0.45,
    excluded: int | None = None,
) -> np.ndarray:
    """Tints a patch with the colors of its label map.

    Args:
      image: (H, W, 3) uint8 RGB.
      mask: (H, W) integers 0..C.
      palette: C + 1 colors.
      alpha: weight of the color, 0..1.
      excluded: the value that stays untinted; None means C, the palette's last.

    Returns:
      (H, W, 3) uint8 RGB.
    """
    excluded = len(palette) - 1 if excluded is None else excluded
    tinted = np.rint((1 - alpha) * image + alpha * colorize(mask, palette)).astype(np.uint8)
    return np.where((mask == excluded)[..., None], image, tinted)


def write_contact_sheet(
    path: Path | str, rows: Sequence[SheetRow], legend: Legend, title: str = ""
) -> None:
    """Draws one row per patch: patch, its masks, the truth if given, overlay of the last mask.

    Above each row are the patch's name and the classes of its label, at the bottom is the legend.

    Args:
      path: of the PNG.
      rows: with the same masks, and all of them with a truth or none.
      legend: of the classes.
      title: of the page.

    Raises:
      ValueError: no row, or rows of different columns.
    """
    cells = [_make_cells(row, {**row.masks, "truth": row.truth}, legend) for row in rows]
    _write_sheet(path, rows, cells, legend, Layout(title))


def write_evaluation_sheet(
    path: Path | str, rows: Sequence[SheetRow], legend: Legend, title: str = ""
) -> None:
    """Draws patch, truth, prediction and overlay of the prediction, with each patch's mIoU.

    Arguments as of `write_contact_sheet`; each row has a truth and one mask, the prediction.
    `metrics.patch_miou` ranks the patches.
    """
    cells = [_make_cells(row, {"truth": row.truth, **row.masks}, legend) for row in rows]
    _write_sheet(path, rows, cells, legend, Layout(title))


def write_demo_banner(
    path: Path | str, rows: Sequence[SheetRow], legend: Legend, side_by_side: int = 2
) -> None:
    """Draws a wide picture: patch, masks and truth.

    Args:
      path: of the PNG.
      rows: each with a truth and the same masks, for instance "pseudo mask" and "prediction";
        names and labels are not shown.
      legend: of the classes.
      side_by_side: patches in a line; two suit a README.
    """
    rows = [SheetRow("", row.image, row.masks, row.truth) for row in rows]
    cells = [
        _make_cells(row, {**row.masks, "truth": row.truth}, legend, overlay=False) for row in rows
    ]
    _write_sheet(path, rows, cells, legend, Layout(tile=160, side_by_side=side_by_side))


def write_confusion_matrix(path: Path | str, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draws a confusion matrix: percentages of the true class, pixel counts beneath.

    Args:
      path: of the PNG.
      confusion: (C, C + 1) counts, rows truth; the last column, tissue predicted as excluded,
        is left out if it is empty.
      classes: C names.
    """
    count = len(classes)
    columns = [*classes, "excluded"]
    if not confusion[:, count:].any():
        confusion, columns = confusion[:, :count], columns[:count]
    totals = confusion.sum(axis=1)
    share = confusion / np.maximum(totals, 1)[:, None]
    with matplotlib.rc_context(STYLE):
        size = (2.6 + 1.05 * len(columns), 1.3 + 0.75 * count)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(share):
            write = partial(
                axes.text, color="white" if value > 0.55 else INK, ha="center", va="center"
            )
            write(column, row - 0.12, f"{100 * value:.1f} %" if totals[row] else "-", fontsize=11)
            write(column, row + 0.2, format_pixels(int(confusion[row, column])), fontsize=8)
        names = [
            f"{_wrap(name)}\n{format_pixels(total)} px" for name, total in zip(classes, totals)
        ]
        axes.set_xticks(range(len(columns)), [_wrap(name) for name in columns])
        axes.set_yticks(range(count), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        _save(figure, path)


def write_training_curves(
    path: Path | str, history: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()
) -> None:
    """Draws every number of a training run against the epoch, one small panel each.

    Args:
      path: of the PNG.
      history: one mapping per epoch, in order: "epoch" (from 0) and named floats, or lists of C
        floats (one line per class). A name need not occur in every epoch; nan is a gap. "restored",
        which is no number, is left out.
      classes: C names for the lines of lists.

    Raises:
      ValueError: nothing to draw.
    """
    names = list(dict.fromkeys(name for record in history for name in record))
    names = [name for name in names if name not in ("epoch", "restored")]
    if not names:
        raise ValueError("the history holds no epoch with a figure to draw")
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * columns, 2.3 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, name in zip(panels, names, strict=False):
            records = [record for record in history if name in record]
            epochs = np.array([record["epoch"] + 1 for record in records])
            values = np.array([record[name] for record in records], np.float64)
            _draw_curves(panel, epochs, values, classes)
            panel.set_title(CURVE_TITLES.get(name, name.replace("_", " ")), loc="left", fontsize=10)
            panel.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
            panel.set_xlabel("epoch", fontsize=8, color=PALE)
        for panel in panels[len(names) :]:
            panel.remove()
        legends = [panel.get_legend_handles_labels() for panel in panels[: len(names)]]
        handles, labels = max(legends, key=lambda legend: len(legend[1]))
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        _save(figure, path)


def write_seed_points(
    path: Path | str, panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
) -> None:
    """Draws the scores of several seeds as points, with a line at each mean.

    Args:
      path: of the PNG.
      panels: title of a score -> variant -> row of the evaluation -> its value with each seed.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
        for axes, (title, variants) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            rows = list(dict.fromkeys(row for by_row in variants.values() for row in by_row))
            step = 0.8 / len(variants)
            for index, (variant, by_row) in enumerate(variants.items()):
                color = SERIES_COLORS[index % len(SERIES_COLORS)]
                offset = (index - (len(variants) - 1) / 2) * step
                for number, (row, values) in enumerate(by_row.items()):
                    label = variant if number == 0 else None
                    place, of_row = rows.index(row) + offset, np.array(values, np.float64)
                    axes.plot([place] * len(of_row), of_row, "o", color=color, ms=5, label=label)
                    defined = of_row[~np.isnan(of_row)]
                    if defined.size:
                        ends = place - 0.3 * step, place + 0.3 * step
                        axes.hlines(defined.mean(), *ends, color=color, linewidth=1.6)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xticks(range(len(rows)), [_wrap(row) for row in rows])
            axes.set_xlim(-0.6, len(rows) - 0.4)
            axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
            axes.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        _save(figure, path)


def _draw_curves(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, classes: Sequence[str]
) -> None:
    """Draws `values` (E,) or (E, C) against `epochs` (E,); a single line has its last value."""
    marker = "o" if len(epochs) < 3 else None
    if values.ndim == 1:
        axes.plot(epochs, values, color=SERIES_COLORS[0], linewidth=1.6, marker=marker)
        axes.set_title(f"{values[-1]:.4g}", loc="right", fontsize=9, color=PALE)
    else:
        for index, series in enumerate(values.T):
            label = classes[index] if classes else f"class {index}"
            color = SERIES_COLORS[index % len(SERIES_COLORS)]
            axes.plot(epochs, series, color=color, linewidth=1.4, marker=marker, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)


def _write_sheet(
    path: Path | str,
    rows: Sequence[SheetRow],
    cells: Sequence[Mapping[str, Picture]],
    legend: Legend,
    layout: Layout,
) -> None:
    if len({tuple(of_row) for of_row in cells}) != 1:
        raise ValueError("a sheet needs at least one row, and the same columns in every row")
    entries = legend.list_entries()
    page_rows = [
        Row(
            list(of_row.values()),
            caption=row.name,
            swatches=[] if row.label is None else list(compress(entries, row.label)),
            note="" if row.miou is None else f"mIoU {row.miou:.3f}",
        )
        for row, of_row in zip(rows, cells, strict=True)
    ]
    maps = [mask for row in rows for mask in (*row.masks.values(), row.truth) if mask is not None]
    if any((mask == legend.excluded).any() for mask in maps):
        entries.append((legend.palette[-1], EXCLUDED_NAME))
    write_page(path, page_rows, list(cells[0]), entries, layout)


def _make_cells(
    row: SheetRow, masks: Mapping[str, np.ndarray | None], legend: Legend, overlay: bool = True
) -> dict[str, Picture]:
    """Makes the cells of a row by heading: patch, `masks` but None, overlay of the row's last mask.

    The boxes of numbers are equally large on the page for any size of mask.
    """

    def add_numbers(pixels: np.ndarray, mask: np.ndarray, *, photograph: bool) -> Picture:
        side = NUMBER_SIDE * max(mask.shape) / CELL
        places = numbers.place_numbers(mask, legend.excluded, side, per_class=2)
        return Picture(pixels, photograph, places)

    cells = {"patch": Picture(row.image, photograph=True)}
    for name, mask in masks.items():
        if mask is not None:
            cells[name] = add_numbers(colorize(mask, legend.palette), mask, photograph=False)
    if overlay:
        last, mask = list(row.masks.items())[-1]
        tinted = tint(row.image, mask, legend.palette)
        cells[f"overlay of {last}"] = add_numbers(tinted, mask, photograph=True)
    return cells


def _wrap(name: str) -> str:
    return textwrap.fill(name, 15)


def format_pixels(count: int) -> str:
    """Writes a count with three significant digits: 512, 3.4 k, 1.25 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * size:  # or 999,999 would read "1e+03 k"
            return f"{count / size:.3g} {unit}"
    return str(count)


def _save(figure: Figure, path: Path | str) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
