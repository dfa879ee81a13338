"""What `slide.json` says of a slide, as the report and the index of the cohort show it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.dataset import Dataset
from wsss_jax.report import slide_pages
from wsss_jax.slides.mapping import provenance
from wsss_jax.wording import counted, two_digits

_RATIOS = {
    "tumor_stroma_ratio": (
        "Tumor-stroma ratio",
        "Stroma / (tumor + stroma), over the whole slide. Pathologists score a hot spot.",
    ),
    "lymphocyte_area_fraction": (
        "Lymphocyte area fraction",
        "Area of lymphocytes / area of all classes. It is no sTIL score.",
    ),
}

_RESAMPLING = {
    "area": "mean of the area that a pixel covers",
    "triangle": "triangle filter over twice the area that a pixel covers",
}


def index_entry(
    summary: Mapping[str, Any], folder: str, dataset: Dataset
) -> slide_pages.IndexEntry:
    """The line of a finished slide in the index of its cohort."""
    return slide_pages.IndexEntry(
        summary["name"],
        folder,
        areas(summary, dataset),
        ratios(summary),
        summary["warnings"],
    )


def areas(summary: Mapping[str, Any], dataset: Dataset) -> list[slide_pages.Area]:
    """The table of areas."""
    colors = dict(zip(dataset.classes, dataset.palette))
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


def ratios(summary: Mapping[str, Any]) -> list[slide_pages.Ratio]:
    """The ratios that the data set has the classes for."""
    return [
        slide_pages.Ratio(_RATIOS[key][0], value, _RATIOS[key][1])
        for key, value in summary["ratios"].items()
    ]


def facts(summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """How the map was made: heading -> label -> text."""
    settings = summary["settings"]["map"]
    width, height = summary["levels"][0]
    known, used = summary["metadata_mpp"], summary["mpp"]
    tile, stride = settings["tile"], settings["stride"]
    gate, white, tissue = settings["gate"], settings["white"], settings["tissue"]
    slide = {
        "File": Path(summary["file"]).name,
        "Format": summary["format"],
        "Size": f"{width:,} x {height:,} pixels, {counted(len(summary['levels']), 'level')}",
        "Resolution": f"{_mpp_text(summary)} ({'metadata' if used == known else 'given'})",
        "Objective": f"{summary['objective_power']:g}x"
        if summary["objective_power"]
        else "unknown",
        "Checksum": settings["slide"]["crc32"],
    }
    method = {
        "Working resolution": f"{settings['mpp']:g} µm per pixel",
        "Resampling": _RESAMPLING[settings["resampling"]],
        "Size of the map": "{:,} x {:,} pixels".format(*summary["size"]),
        "Tiles": f"{summary['tiles']:,} of {tile} x {tile} pixels",
        "Stride": f"{stride} pixels ({1 - stride / tile:.0%} overlap)",
        "Average": "all pixels of a tile alike"
        if settings["window"] == "flat"
        else "the middle of a tile weighs more (Hann window)",
        "Gate": f"{gate['mode']} of classes at or under {gate['threshold']:g} become 0"
        if gate
        else "none",
        "Tissue": _tissue_text(tissue),
        "White background": f"grey value above {white[0]}, areas of {white[1]} pixels and more"
        if white
        else "not looked for",
    }
    networks = {}
    for phase, checksum in sorted(settings["networks"].items()):
        name = provenance.PHASES[phase]
        networks[name] = f"{Path(summary['runs'][phase]).name} (checksum {checksum})"
        if phase in summary["networks"]:
            origin = provenance.Origin(**summary["networks"][phase])
            for label, text in provenance.describe(origin).items():
                networks[f"{name}: {label}"] = text
    geojson = summary["settings"]["output"]["geojson"]
    polygons = {
        "Smallest region": f"{geojson['min_area']:g} µm²; smaller holes are filled",
        "Outlines moved": f"up to {geojson['simplify']:g} px of the map",
        **{
            f"Share held of {name}": "none there" if share is None else f"{share:.1%}"
            for name, share in summary["polygon_shares"].items()
        },
    }
    whole, for_tiles = (two_digits(summary["seconds"][key]) for key in ("all", "tiles"))
    run = {
        "Time": f"{whole} s, {for_tiles} s of them for tiles",
        "Tiles of the last start": f"{summary['tiles_of_last_start']:,}",
        "Versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    return {
        "Slide": slide,
        "Method": method,
        "Networks": networks,
        "Polygons": polygons,
        "Run": run,
    }


def _mpp_text(summary: Mapping[str, Any]) -> str:
    across, down = summary["mpp_xy"]
    if across == down:
        return f"{summary['mpp']:g} µm per pixel"
    return f"{across:g} x {down:g} µm per pixel, not square"


def _tissue_text(tissue: Mapping[str, Any]) -> str:
    if "mask" in tissue:
        return f"a given mask (checksum {tissue['mask']['crc32']})"
    if tissue["source"] == "off":
        return "not looked for: the whole slide"
    threshold = tissue["threshold"]
    how = "Otsu's threshold" if threshold == "otsu" else f"threshold {threshold}"
    return (
        f"by saturation, {how}; gaps up to {2 * tissue['closing']:g} µm closed, pieces under "
        f"{tissue['min_tissue']:,g} µm² dropped, holes under {tissue['min_hole']:,g} µm² filled"
    )
