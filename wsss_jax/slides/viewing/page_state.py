"""What a page that shows a map has to know."""

from collections.abc import Mapping
from typing import Any

from wsss_jax.slides.outputs import places
from wsss_jax.slides.viewing.collection import SlideMap
from wsss_jax.slides.viewing.grid import SIDE, TileGrid
from wsss_jax.slides.viewing.map_layers import ENTROPY, MARGIN, name_class

TISSUE = "tissue"  # besides the names of layers
NEED_PROBABILITIES = (
    "Probabilities and uncertain places: run the job 'segment' again with "
    "--config.probabilities=True (the networks once more)"
)


def describe_map(opened: SlideMap) -> dict[str, Any]:
    """Describes a slide and its map.

    Lengths are micrometers. Positions are level-0 pixels of the slide, as in the files of the map,
    of which `origin` is where QuPath begins to count.
    """
    summary, frame, legend = opened.summary, opened.frame, opened.legend
    across, down = (frame.mpp / scale for scale in frame.scale)
    width, height = frame.slide_size
    left, top, wide, tall = summary["bounds"]
    names = opened.layers.list_names()
    return {
        "name": summary["name"],
        "classes": [
            {"name": name, "color": list(color)}
            for name, color in zip(legend.names, legend.palette)
        ],
        "size": [width, height],
        "mpp": [across, down],
        "bounds": [left, top, wide, tall],
        "map": {"size": [frame.width, frame.height], "mpp": frame.mpp},
        "tissue": None
        if opened.tissue is None
        else {"mpp": opened.tissue.mpp, **_describe_tiles(opened.tissue.grid)},
        "layers": {
            name: {
                "title": _name_layer(name, legend.names),
                "mpp": frame.mpp * frame.width / opened.layers.get_grid(name).width,
                **_describe_tiles(opened.layers.get_grid(name)),
            }
            for name in names
        },
        "missing": "" if ENTROPY in names else NEED_PROBABILITIES,
        "problem": opened.problem,
        "areas": [
            {"class": row["class"], "mm2": row["mm2"]}
            for row in summary["areas"][: len(legend.names)]
        ],
        "places": list_places(summary),
    }


def list_places(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lists the places that deserve a look, by kind; summaries of earlier versions have none."""
    unknown = ("", "", "")
    return [
        {
            "heading": places.KINDS.get(place["kind"], unknown)[0],
            "text": place["text"],
            "box": place["box"],
        }
        for place in summary.get("places", ())
    ]


def _describe_tiles(grid: TileGrid) -> dict[str, Any]:
    return {"size": list(grid.padded), "last": grid.last, "side": SIDE}


def _name_layer(name: str, classes: Any) -> str:
    titles = {
        "classes": "Classes",
        "outlines": "Outlines",
        ENTROPY: "Uncertainty (entropy)",
        MARGIN: "Uncertainty (margin of the first class over the second)",
        **{name_class(value): f"Probability of {each}" for value, each in enumerate(classes)},
    }
    return titles[name]
