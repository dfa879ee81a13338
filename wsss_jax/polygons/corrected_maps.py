"""Maps of slides as a person has corrected them: annotations counted on the pixels of the map."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from data.dataset import Dataset, make_dataset
from wsss_jax.errors import InputError
from wsss_jax.polygons import shapes
from wsss_jax.polygons.classes import make_labels
from wsss_jax.polygons.drawings import read_drawing
from wsss_jax.polygons.shapes import Drawing, Overlap, Shape, Window
from wsss_jax.report import slide_pages, slide_pictures
from wsss_jax.report.legend import Legend
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.map_agreement import count_pairs
from wsss_jax.slides.mapping.parts import Layout, Parts
from wsss_jax.slides.outputs import areas, pyramid, result_files, results, thumbnails
from wsss_jax.slides.outputs.geojson import PolygonRule, write_geojson
from wsss_jax.slides.outputs.label_maps import LabelMap, open_label_map
from wsss_jax.slides.outputs.regions import ReadRows
from wsss_jax.wording import format_count

# Settings of the map's files that those of the corrected map have, too.
_OUTPUT = ("classes", "palette", "roles", "geojson", "picture", "picture_palette", "tables")
# What report and summary take from the summary of the map, besides what all summaries have.
_KEPT = (
    *("levels", "bounds", "size", "format", "mpp", "mpp_xy", "metadata_mpp", "objective_power"),
    *("networks", "runs", "seconds", "versions", "tiles_of_last_start"),
)


class CorrectionRule(NamedTuple):
    """What annotations mean.

    Attributes:
      labels: pairs of label and class; an empty class is excluded.
      ignored: labels of annotations that count as not drawn.
      overlap: which of two annotations lies on top, the "smaller" or what was "drawn" later.
      outside: what pixels outside of all annotations are: "excluded", or as in the "map".
    """

    labels: Sequence[Sequence[str]]
    ignored: Sequence[str]
    overlap: Overlap
    outside: str


def describe_dataset(summary: Mapping[str, Any], path: Path) -> Dataset:
    """Describes the classes of a map.

    Args:
      summary: of the slide.
      path: of its file, for messages.

    Raises:
      InputError: the summary is of an earlier version, or damaged.
    """
    settings = summary["settings"]
    output = settings["output"]
    known = {**summary, **output}
    missing = [name for name in (*_KEPT, "geojson", "picture_palette") if name not in known]
    try:
        if missing:
            raise KeyError(missing[0])
        fields = {
            "name": "map",
            "classes": output["classes"],
            "palette": output["palette"],
            "roles": output.get("roles", {}),
            "white": settings["map"]["white"] is not None,
            "mpp": settings["map"]["mpp"],
            "label_notation": "spaces",
            "present_share": 0.05,
        }
    except KeyError as error:
        raise InputError(
            f"{path}: of an earlier version ({error}); run the job 'segment' again"
        ) from error
    return make_dataset(fields, path)


def recount(source: Path, original: Path, folder: Path, rule: CorrectionRule) -> str:
    """Makes the map of a slide anew of corrected annotations, with all that belongs to a map.

    Label map, polygons, tables, pictures, report and summary are those of the job "segment". What
    is said of slide and networks is kept; report and summary say what was corrected.

    Args:
      source: the annotations, GeoJSON as QuPath exports it.
      original: folder of the map that they correct.
      folder: where to write.
      rule: what the annotations mean.

    Returns:
      one line that says what was done.

    Raises:
      InputError: the annotations or the map cannot be read or do not belong together, or the folder
        has the map of another slide, or other files.
    """
    before = results.read_summary(original)
    with open_label_map(original) as label_map:  # refuses a folder that is not finished
        assert before is not None
        drawing = read_drawing(source)
        if drawing.image is not None:
            raise InputError(
                f"{source}: a file of labelme, but slides are corrected in QuPath: export the "
                "annotations there as GeoJSON"
            )
        dataset = describe_dataset(before, original / results.SUMMARY)
        painted = _choose_shapes(drawing, dataset, rule, label_map.frame, before, source)
        correction = {
            "file": source.name,
            "crc32": f"{zlib.crc32(source.read_bytes()):08x}",
            "annotations": len(painted),
            "without_area": sum(drawing.left_out.values()),
            "labels": [list(pair) for pair in rule.labels],
            "ignored": list(rule.ignored),
            "overlap": rule.overlap,
            "outside": rule.outside,
        }
        output = before["settings"]["output"]
        settings = {
            "map": {**before["settings"]["map"], "correction": correction},
            "output": {
                **{name: output[name] for name in _OUTPUT if name in output},
                "probabilities": False,
            },
        }
        name = original.name
        if _is_finished(folder, settings):
            return f"{name}: finished before"
        results.check_result_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / results.SUMMARY).unlink(missing_ok=True)
        parts = _paint_parts(painted, label_map, folder, settings["map"], rule.outside)
        known = _write_files(folder, parts.read, label_map, before, settings)
        legend = Legend(dataset.classes, [tuple(c) for c in settings["output"]["picture_palette"]])
        thumbnail = thumbnails.read_thumbnail(original)
        labels = thumbnails.sample_labels(parts.read, thumbnail, label_map.frame)
        um = thumbnails.measure_pixel(thumbnail, label_map.frame)
        pictures = slide_pictures.SlidePictures(thumbnail, labels, um, legend)
        slide_pictures.write_pictures(folder, pictures)
    changed = known.pop("changed")
    summary = {
        **before,
        **known,
        "settings": settings,
        "correction": {**correction, "of": str(original.absolute()), "changed": changed},
        # What was found on the map that was corrected.
        "places": [],
        "confidence": None,
        "warnings": [
            f"corrected by hand: {format_count(len(painted), 'annotation')} of {source.name}; "
            f"{changed['share']:.1%} of the area with a class is another than in the map",
            *(text for text in before["warnings"] if result_files.POLYGONS not in text),
        ],
    }
    result_files.write_report(folder, summary, pictures, ())
    return (
        f"{name}: {format_count(len(painted), 'annotation')} counted, {changed['share']:.1%} of "
        "the area with a class changed"
    )


def _choose_shapes(
    drawing: Drawing,
    dataset: Dataset,
    rule: CorrectionRule,
    frame: MapFrame,
    before: Mapping[str, Any],
    source: Path,
) -> list[tuple[Shape, int]]:
    """Returns the shapes and their label values, from the lowest to the uppermost."""
    sizes = {tuple(before["levels"][0]), tuple(before["bounds"][2:])}
    if drawing.slide_size and drawing.slide_size not in sizes:
        wide, tall = drawing.slide_size
        raise InputError(
            f"{source}: drawn on an image of {wide} x {tall} pixels, but the slide of the map, "
            f"{before['name']}, has {' x '.join(map(str, before['levels'][0]))}; name the map of "
            "the right slide by --config.map"
        )
    if not drawing.shapes:
        raise InputError(f"{source}: no annotation with an area; export the annotations again")
    shapes.check_overlap(drawing.shapes, _make_window(frame), source)
    labels = make_labels(dataset, rule.labels, rule.ignored, dataset.excluded)
    chosen = labels.choose_values(drawing.shapes, source)
    return shapes.sort_shapes(chosen, rule.overlap, ())


def _make_window(
    frame: MapFrame, x: int = 0, y: int = 0, size: tuple[int, int] | None = None
) -> Window:
    """Makes the window of a part of a map, in the coordinates of QuPath."""
    width, height = size or (frame.width, frame.height)
    corner = x * frame.scale[0] - frame.origin[0], y * frame.scale[1] - frame.origin[1]
    return Window(width, height, frame.scale, corner)


def _is_finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder has all files of these settings.

    Raises:
      InputError: it has the map of another slide.
    """
    before = results.read_summary(folder)
    if before is None:
        return False
    if before["settings"]["map"].get("slide") != settings["map"]["slide"]:
        raise InputError(
            f"{folder} {results.OTHER_SLIDE}, {before['file']}; name another --workdir"
        )
    names = [*before["files"], slide_pages.REPORT]
    is_whole = all(result_files.is_whole(folder, before, name) for name in names)
    return is_whole and before["settings"] == settings


def _paint_parts(
    painted: Sequence[tuple[Shape, int]],
    label_map: LabelMap,
    folder: Path,
    settings: Mapping[str, Any],
    outside: str,
) -> Parts:
    """Paints the annotations on the map, part by part; parts that are there stay."""
    frame = label_map.frame
    parts = Parts(folder / results.PARTS, Layout(frame.width, frame.height), settings)
    # Polygon by polygon, to paint on a part only what reaches into it.
    single = [
        (shape._replace(polygons=[polygon]), value)
        for shape, value in painted
        for polygon in shape.polygons
    ]
    bounds = shapely.bounds([shape.polygons[0] for shape, _ in single])
    for part in parts.missing:
        rows, columns = part.shape
        window = _make_window(frame, part.x0, part.y0, (columns, rows))
        left, top, right, bottom = window.area.bounds
        reaches = (bounds[:, 0] < right) & (bounds[:, 2] > left)
        reaches &= (bounds[:, 1] < bottom) & (bounds[:, 3] > top)
        fill: int | np.ndarray = label_map.legend.excluded
        if outside == "map":
            fill = label_map.read_rows(part.y0, part.y1, 1)[:, part.x0 : part.x1]
        labels = shapes.paint([single[i] for i in np.flatnonzero(reaches).tolist()], window, fill)
        parts.write(part, labels, np.zeros((0, rows, columns), np.uint8))
    return parts


def _write_files(
    folder: Path,
    read_rows: ReadRows,
    label_map: LabelMap,
    before: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes maps, polygons and tables.

    Returns:
      what the summary says of them, and "changed": pixels whose label is another than before, and
      their share of the pixels that have a class in either map.
    """
    frame, legend, output = label_map.frame, label_map.legend, settings["output"]
    in_pictures = Legend(legend.names, [tuple(color) for color in output["picture_palette"]])
    pyramid.write_label_map(folder / result_files.LABEL_MAP, read_rows, frame, legend)
    pyramid.write_color_map(folder / result_files.COLOR_MAP, read_rows, frame, in_pictures)
    rule = PolygonRule(output["geojson"]["min_area"], output["geojson"]["simplify"])
    mark = settings["map"]["slide"]
    slide_id = f"{before['name']}/{mark['bytes']}/{mark['crc32']}"
    path = folder / result_files.POLYGONS
    covered = write_geojson(path, read_rows, frame, legend, slide_id, rule).tolist()
    same = np.arange(legend.excluded + 1, dtype=np.uint8)
    pairs = count_pairs(label_map.read_rows, read_rows, frame, (same, same))
    counts, tissue = pairs.sum(axis=0), _count_tissue(pairs, before["tissue_pixels"])
    table = areas.tabulate_areas(counts, legend.names, frame, tissue)
    ratios = areas.compute_ratios(counts, legend.names, output.get("roles", {}))
    name, pixels = folder.name, counts[:-1].tolist()
    areas.write_areas(folder / result_files.AREAS, {name: table})
    names = [
        *(result_files.LABEL_MAP, result_files.COLOR_MAP, result_files.POLYGONS),
        *(result_files.AREAS, slide_pictures.OVERLAY, slide_pictures.THUMBNAIL),
    ]
    if ratios:
        areas.write_ratios(folder / result_files.RATIOS, {name: ratios})
        names.append(result_files.RATIOS)
    else:
        (folder / result_files.RATIOS).unlink(missing_ok=True)
    changed, classified = int(pairs.sum() - np.trace(pairs)), int(pairs.sum() - pairs[-1, -1])
    shares = [each / count if count else None for each, count in zip(covered, pixels)]
    return {
        "tissue_pixels": tissue,
        "areas": table,
        "ratios": ratios,
        "pixels_in_polygons": covered,
        "polygon_shares": dict(zip(legend.names, shares, strict=True)),
        "files": [each for each in result_files.FILES if each in names],
        "changed": {"pixels": changed, "share": changed / classified if classified else 0.0},
    }


def _count_tissue(pairs: np.ndarray, before: int) -> int:
    """Counts the tissue of a corrected map, of which classes are a part.

    The map says what has a class, not which of the other pixels are tissue (white gaps) and which
    are glass. What is drawn there counts as gaps of the tissue first, then as more tissue.

    Args:
      pairs: (C + 1, C + 1) int64, pixels by label before and after.
      before: pixels of tissue before.
    """
    gaps = before - int(pairs[:-1].sum())
    drawn = int(pairs[-1, :-1].sum())
    return before + max(0, drawn - gaps)
