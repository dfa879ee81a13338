"""Files of shapes: which there are, and what is in them."""

import glob
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from wsss_jax.errors import InputError
from wsss_jax.files import check_regular
from wsss_jax.polygons.geojson import is_geojson, read_geojson
from wsss_jax.polygons.labelme import read_labelme
from wsss_jax.polygons.shapes import Drawing

ENDINGS = (".json", ".geojson", ".json.gz", ".geojson.gz")
_LARGEST = 2**30  # bytes of a file, unpacked
_OTHERS = ("config.json", "dataset.json")  # of this program, beside shapes


def find_files(
    text: str, is_wanted: Callable[[Path], bool], what: str, field: str = "files"
) -> list[Path]:
    """Finds the files that a text names: paths and patterns (`*`, `?`, `**`), comma-separated.

    A folder stands for what is wanted in it; hidden files are skipped.

    Args:
      text: the value of the field.
      is_wanted: whether a path is one of those that a folder or pattern stands for.
      what: they are, for messages.
      field: of the configuration, for messages.

    Returns:
      each file once, in the order of the text, sorted within a folder or pattern.

    Raises:
      InputError: a path or pattern leads to nothing.
    """
    found: dict[Path, None] = {}
    for name in [text] if Path(text).exists() else filter(None, map(str.strip, text.split(","))):
        path = Path(name)
        if path.is_dir() and not is_wanted(path):
            paths = [each for each in path.iterdir() if is_wanted(each)]
        elif path.exists():
            paths = [path]
        else:
            paths = [each for each in map(Path, glob.glob(name, recursive=True)) if is_wanted(each)]
        paths = sorted(each for each in paths if each == path or not each.name.startswith("."))
        if not paths:
            missing = f"the folder {name} has no {what}" if path.is_dir() else f"there is no {name}"
            raise InputError(f"config.{field}: {missing}; name {what} by --config.{field}")
        found.update(dict.fromkeys(paths))
    if not found:
        raise InputError(f"config.{field} names no {what}; set --config.{field}")
    return list(found)


def is_drawing(path: Path) -> bool:
    """Whether a path ends like a file of shapes."""
    name = path.name.lower()
    return name.endswith(ENDINGS) and name not in _OTHERS and not path.is_dir()


def get_stem(path: Path) -> str:
    """Returns the name of a file of shapes without its ending."""
    ending = max((e for e in ENDINGS if path.name.lower().endswith(e)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def read_drawing(path: Path) -> Drawing:
    """Reads a file of labelme or QuPath, whichever it is by its content.

    Raises:
      InputError: names the file, and the shape if one is wrong.
    """
    content = _load_json(path)
    if isinstance(content, dict) and "shapes" in content:
        return read_labelme(content, path)
    if is_geojson(content):
        return read_geojson(content, path)
    raise InputError(
        f"{path}: neither a file of labelme (no shapes) nor GeoJSON (no features); remove it or "
        "export it again"
    )


def _load_json(path: Path) -> Any:
    check_regular(path)
    is_packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise InputError(f"{path}: over {_LARGEST >> 30} GB; export fewer shapes at a time")
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); save or export it again") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); save or export it again") from error


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
