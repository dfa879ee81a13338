"""What the report of a slide and the index of a cohort show, made from the slide's summary.

Summaries of earlier versions are among them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsss_jax import symmetries
from wsss_jax.report import cohort_page, slide_pages
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pictures import PREVIEW, SlidePictures, format_length
from wsss_jax.slides.mapping import provenance
from wsss_jax.slides.outputs import cohort_table, places
from wsss_jax.slides.outputs.areas import RATIOS, sum_tissue
from wsss_jax.wording import format_count, format_two_digits

_RESAMPLING = {
    "area": "mean of the area that a pixel covers",
    "triangle": "triangle filter over twice the area that a pixel covers",
}


def make_index_entry(line: cohort_table.Line, legend: Legend) -> cohort_page.IndexEntry:
    """Makes the row of a slide in the index, where its folder has its name."""
    if line.summary is None:
        preview = f"{line.name}/{PREVIEW}" if line.is_at_work else None
        return cohort_page.IndexEntry(line.name, error=line.error or None, preview=preview)
    confidence = line.summary.get("confidence")
    return cohort_page.IndexEntry(
        line.summary["name"],
        line.name,
        sum_tissue(line.summary["areas"]),
        list_areas(line.summary, legend),
        list_ratios(line.summary),
        confidence["share"] if confidence else None,
        line.reasons,
    )


def list_areas(summary: Mapping[str, Any], legend: Legend) -> list[slide_pages.Area]:
    """Lists the rows of the table of areas."""
    colors = dict(zip(legend.names, legend.palette))
    return [
        slide_pages.Area(
            row["class"],
            colors.get(row["class"]),
            row["pixels"],
            row["mm2"],
            row["share_of_tissue"],
            row["share_of_slide"],
        )
        for row in summary["areas"]
    ]


def list_ratios(summary: Mapping[str, Any]) -> list[slide_pages.Ratio]:
    """Lists the ratios for which the data set has the classes."""
    return [
        slide_pages.Ratio(RATIOS[key].title, value, RATIOS[key].definition)
        for key, value in summary["ratios"].items()
    ]


def list_places(
    summary: Mapping[str, Any], pictures: Sequence[SlidePictures]
) -> list[slide_pages.PlaceView]:
    """Lists the places that deserve a look, with their pictures."""
    width, height = summary["levels"][0]
    views = []
    for place, picture in zip(summary["places"], pictures, strict=True):
        heading, explanation, field = places.KINDS[place["kind"]]
        if field:
            side = format_length(summary["settings"]["output"]["places"][field])
            explanation = explanation.format(side=side)
        x, y = place["center"]
        link = places.make_link(place, summary["bounds"][:2], summary["mpp_xy"])
        at = x / width, y / height
        views.append(slide_pages.PlaceView(heading, explanation, place["text"], picture, at, link))
    return views


def describe_certainty(summary: Mapping[str, Any]) -> slide_pages.Certainty:
    """Describes how certain the map is, or how that can be known."""
    if confidence := summary.get("confidence"):
        return slide_pages.Certainty(
            confidence["threshold"], confidence["share"], confidence["classes"]
        )
    if summary["settings"]["output"]["probabilities"]:
        return slide_pages.Certainty(note="Not counted: set --config.confidence=0.6.")
    return slide_pages.Certainty(
        note="Not known: no probabilities are stored. Give the same command again with "
        "--config.probabilities=True; the networks then see all tiles once more."
    )


def describe_map(summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Describes how the map was made: heading -> label -> text."""
    return {
        **({"Correction": _describe_correction(summary)} if "correction" in summary else {}),
        "Slide": _describe_slide(summary),
        "Method": _describe_method(summary),
        "Networks": _describe_networks(summary),
        "Polygons": _describe_polygons(summary),
        "Run": _describe_run(summary),
    }


def _describe_correction(summary: Mapping[str, Any]) -> dict[str, str]:
    """Describes by which annotations a person has corrected the map."""
    correction = summary["correction"]
    changed, outside = correction["changed"], correction["outside"]
    return {
        "Annotations": f"{correction['annotations']:,} of {correction['file']}",
        "Checksum": correction["crc32"],
        "On top": f"what is {'smaller' if correction['overlap'] == 'smaller' else 'drawn later'}",
        "Outside of them": "no class" if outside == "excluded" else "as in the map",
        "Changed": f"{changed['pixels']:,} pixels, {changed['share']:.1%} of those with a class",
    }


def _describe_slide(summary: Mapping[str, Any]) -> dict[str, str]:
    width, height = summary["levels"][0]
    across, down = summary["mpp_xy"]
    mpp = f"{summary['mpp']:g} µm per pixel"
    if across != down:
        mpp = f"{across:g} x {down:g} µm per pixel, not square"
    source = "metadata" if summary["mpp"] == summary["metadata_mpp"] else "given"
    power = summary["objective_power"]
    return {
        "File": Path(summary["file"]).name,
        "Format": summary["format"],
        "Size": f"{width:,} x {height:,} pixels, {format_count(len(summary['levels']), 'level')}",
        "Resolution": f"{mpp} ({source})",
        "Objective": f"{power:g}x" if power else "unknown",
        "Checksum": summary["settings"]["map"]["slide"]["crc32"],
    }


def _describe_method(summary: Mapping[str, Any]) -> dict[str, str]:
    settings = summary["settings"]["map"]
    tile, stride = settings["tile"], settings["stride"]
    gate, white = settings["gate"], settings["white"]
    return {
        "Working resolution": f"{settings['mpp']:g} µm per pixel",
        "Resampling": _RESAMPLING[settings["resampling"]],
        "Size of the map": "{:,} x {:,} pixels".format(*summary["size"]),
        "Tiles": f"{summary['tiles']:,} of {tile} x {tile} pixels",
        "Stride": f"{stride} pixels ({1 - stride / tile:.0%} overlap)",
        "Average": "all pixels of a tile have the same weight"
        if settings["window"] == "flat"
        else "the middle of a tile has more weight (Hann window)",
        **_describe_views(settings.get("tta", "none")),
        "Gate": _describe_gate(summary) if gate else "none",
        "Tissue": _describe_tissue(settings["tissue"]),
        **_describe_least_tissue(settings.get("min_tissue_share", 0.0)),
        "White background": f"gray value above {white[0]}, areas of {white[1]} pixels or more"
        if white
        else "not detected",
    }


def _describe_gate(summary: Mapping[str, Any]) -> str:
    gate = summary["settings"]["map"]["gate"]
    text = (
        f"{gate['mode']} of classes to which {_name_network(summary, 'phase1')} gives "
        f"{gate['threshold']:g} or less become 0"
    )
    if stride := gate.get("stride"):
        text += f"; it classifies windows every {stride} pixels, between which tiles interpolate"
    return text


def _describe_least_tissue(share: float) -> dict[str, str]:
    """Describes which tiles are left out; nothing if none are."""
    return {"Tiles left out": f"of which less than {share:.0%} is tissue"} if share else {}


def _describe_views(tta: str) -> dict[str, str]:
    """Describes over how many views of a tile probabilities are averaged; nothing for one."""
    if tta == "none":
        return {}
    kinds = {"flips": "mirrored", "d4": "mirrored and turned"}
    return {"Views": f"mean of {symmetries.count(tta)} of each tile: as it is, and {kinds[tta]}"}


def _describe_tissue(tissue: Mapping[str, Any]) -> str:
    if "mask" in tissue:
        return f"a given mask (checksum {tissue['mask']['crc32']})"
    if tissue["source"] == "off":
        return "not detected: the whole slide counts as tissue"
    threshold = tissue["threshold"]
    rule = "Otsu's threshold" if threshold == "otsu" else f"threshold {threshold}"
    return (
        f"by saturation, {rule}; gaps up to {2 * tissue['closing']:g} µm closed, pieces under "
        f"{tissue['min_tissue']:,g} µm² removed, holes under {tissue['min_hole']:,g} µm² filled"
    )


def _read_origin(summary: Mapping[str, Any], phase: str) -> provenance.Origin | None:
    fields = summary["networks"].get(phase)
    return None if fields is None else provenance.Origin(**fields)


def _name_network(summary: Mapping[str, Any], phase: str) -> str:
    return provenance.name_network(phase, _read_origin(summary, phase))


def _describe_networks(summary: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    for phase, checksum in sorted(summary["settings"]["map"]["networks"].items()):
        name = provenance.begin_sentence(_name_network(summary, phase))
        facts[name] = f"{Path(summary['runs'][phase]).name} (checksum {checksum})"
        if origin := _read_origin(summary, phase):
            for label, text in provenance.describe(origin).items():
                facts[f"{name}: {label}"] = text
    return facts


def _describe_polygons(summary: Mapping[str, Any]) -> dict[str, str]:
    geojson = summary["settings"]["output"]["geojson"]
    shares = {
        f"{name} in polygons": "none on the slide" if share is None else f"{share:.1%} of its area"
        for name, share in summary["polygon_shares"].items()
    }
    return {
        "Smallest region": f"{geojson['min_area']:g} µm²; smaller holes are filled",
        "Outlines": f"moved by up to {geojson['simplify']:g} px of the map",
        **shares,
    }


def _describe_run(summary: Mapping[str, Any]) -> dict[str, str]:
    seconds, tile_seconds = (format_two_digits(summary["seconds"][key]) for key in ("all", "tiles"))
    versions = (f"{name} {version}" for name, version in summary["versions"].items())
    return {
        "Time": f"{seconds} s, of which {tile_seconds} s for tiles",
        "Tiles since the last start": f"{summary['tiles_of_last_start']:,}",
        "Versions": ", ".join(versions),
    }
