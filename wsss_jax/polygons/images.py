"""Images and slides, to be found by the names of files of shapes or masks."""

from collections import defaultdict
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.slides.outputs import results
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.mpp import read_mpp_table


class Images:
    """Images and slides, by their names with and without ending."""

    def __init__(self, text: str, slide_mpp: float = 0.0, mpp_table: str = ""):
        """Lists the images.

        Args:
          text: the value of `config.images`: a folder, paths or patterns.
          slide_mpp: micrometers per pixel of level 0; 0 takes it from the metadata.
          mpp_table: a table that gives it by slide, "" for none.

        Raises:
          InputError: no images there, or a table that cannot be read.
        """
        table = read_mpp_table(Path(mpp_table)) if mpp_table else {}
        paths = catalog.find_slides(text, results.is_result_folder, "images")
        self._by_name: dict[str, list[SlideFile]] = defaultdict(list)
        self._by_stem: dict[str, list[SlideFile]] = defaultdict(list)
        for file in catalog.name_slides(paths, slide_mpp, table):
            name, stem = map(catalog.normalize_name, (file.path.name, file.path.stem))
            self._by_name[name].append(file)
            self._by_stem[stem.removesuffix(".ome")].append(file)  # QuPath calls a.ome.tif "a"

    def find(self, name: str, path: Path) -> SlideFile:
        """Finds the image of a file of shapes or a mask.

        Args:
          name: of the image, with or without its ending.
          path: of the file, for messages.

        Raises:
          InputError: none has this name, or several.
        """
        key = catalog.normalize_name(name)
        found = self._by_name.get(key) or self._by_stem.get(key) or []
        if not found:
            raise InputError(
                f"{path}: there is no image called {name}; name the folder of the images by "
                "--config.images"
            )
        if len(found) > 1:
            several = ", ".join(str(file.path) for file in found)
            raise InputError(f"{path}: {several} could be its image; name one by --config.images")
        return found[0]
