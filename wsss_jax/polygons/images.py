"""Images and slides, to be found by the names of files of shapes or masks."""

from collections.abc import Sequence
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.mpp import read_mpp_table


def list_images(text: str, slide_mpp: float, mpp_table: str) -> list[SlideFile]:
    """Lists images and slides with their names and resolutions.

    Args:
      text: the value of `config.images`: a folder, paths or patterns.
      slide_mpp: micrometers per pixel of level 0; 0 takes it from the metadata.
      mpp_table: a table that gives it by slide, "" for none.

    Raises:
      InputError: no images there, or a table that cannot be read.
    """
    table = read_mpp_table(Path(mpp_table)) if mpp_table else {}
    paths = catalog.find_slides(text, results.is_result_folder, "images")
    return catalog.name_slides(paths, slide_mpp, table)


def choose_image(images: Sequence[SlideFile], name: str, path: Path) -> SlideFile:
    """Chooses the image of a file of shapes or a mask.

    Args:
      images: those there are.
      name: of the image, with or without its ending.
      path: of the file, for messages.

    Raises:
      InputError: none has this name, or several.
    """
    fold = catalog.normalize_name
    found = [file for file in images if fold(file.path.name) == fold(name)]
    found = found or [  # QuPath calls a.ome.tif "a"
        file for file in images if fold(file.path.stem).removesuffix(".ome") == fold(name)
    ]
    if not found:
        raise InputError(
            f"{path}: there is no image called {name}; name the folder of the images by "
            "--config.images"
        )
    if len(found) > 1:
        several = ", ".join(str(file.path) for file in found)
        raise InputError(f"{path}: {several} could be its image; name one by --config.images")
    return found[0]
