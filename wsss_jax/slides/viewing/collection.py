"""The maps of a workdir, opened when they are looked at."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from wsss_jax.errors import InputError
from wsss_jax.report.legend import Legend
from wsss_jax.report.slide_pictures import PREVIEW, THUMBNAIL
from wsss_jax.slides.frame import MapFrame
from wsss_jax.slides.outputs import result_files, results
from wsss_jax.slides.outputs.label_maps import read_frame
from wsss_jax.slides.outputs.tiled_pyramid import TiledPyramid, open_pyramid
from wsss_jax.slides.reading.catalog import SlideFile, fingerprint
from wsss_jax.slides.reading.slide import open_slide
from wsss_jax.slides.viewing.map_layers import MapLayers
from wsss_jax.slides.viewing.tissue_tiles import TissueTiles

_OPEN = 6  # slides; each holds files and caches
_SQUARE = 1e-6  # share by which sides of pixels differ through rounding


class SlideMap:
    """A slide and its map, open. Several threads may read both.

    Attributes:
      summary: content of `slide.json`.
      frame: where the map lies on the slide.
      legend: of the map.
      labels: the map.
      layers: what can be shown of it.
      slide: file of the slide.
      tissue: the slide, or None if its file is not there any more.
      problem: why not, one line, or "".
    """

    def __init__(self, folder: Path, find_slide: Callable[[Mapping[str, Any]], Path]):
        """Opens the map in a folder of results.

        Raises:
          InputError: the folder is not finished, or the map is damaged.
        """
        self.frame: MapFrame
        self.legend: Legend
        self.frame, self.legend = read_frame(folder)
        summary = results.read_summary(folder)
        assert summary is not None  # or its frame could not be read
        self.summary = summary
        with ExitStack() as stack:
            self.labels: TiledPyramid = stack.enter_context(
                open_pyramid(folder / result_files.LABEL_MAP)
            )
            probabilities = None
            if result_files.PROBABILITIES in summary["files"]:
                path = folder / result_files.PROBABILITIES
                probabilities = stack.enter_context(open_pyramid(path))
            self.layers = MapLayers(self.labels, probabilities, self.frame, self.legend)
            self.slide = find_slide(summary)
            self.tissue: TissueTiles | None = None
            self.problem = ""
            try:
                _check_content(self.slide, summary)
                slide = stack.enter_context(open_slide(self.slide, _get_given_mpp(summary)))
                self.tissue = TissueTiles(slide, folder / THUMBNAIL)
            except (InputError, OSError) as error:
                self.problem = str(error)
            self._open = stack.pop_all()

    def close(self) -> None:
        """Closes the files."""
        self._open.close()


def _check_content(path: Path, summary: Mapping[str, Any]) -> None:
    """Refuses another slide of the same name, whose tissue the map would be laid on.

    Raises:
      InputError: it is missing, or another one.
    """
    if not path.exists():
        raise InputError(f"{path}: the slide is not there: name its folder with --config.slides")
    if fingerprint(path) != summary["settings"]["map"]["slide"]:
        raise InputError(f"{path}: not the slide that the map was made of: its content differs")


def _get_given_mpp(summary: Mapping[str, Any]) -> float | None:
    """Returns the mpp that was given to the job instead of the metadata; None = it was not.

    Pixels that are not square are so by the metadata.
    """
    across, down = summary["settings"]["map"]["slide_mpp"]
    return across if abs(across / down - 1) < _SQUARE else None


def _is_plain(name: str) -> bool:
    """Whether a name leads to a visible folder of a workdir, and nowhere else."""
    return Path(name).name == name and not name.startswith(".") and "\0" not in name


class Collection:
    """The finished maps of a workdir. Several threads may use it."""

    def __init__(self, workdir: Path, slides: Path | None = None):
        """Prepares for maps that may be finished while it is used.

        Args:
          workdir: of the job "segment".
          slides: folder of slides that have been moved since; None = they have not.
        """
        self._workdir, self._slides = workdir, slides
        self._lock = Lock()
        self._open: OrderedDict[str, tuple[SlideMap, float]] = OrderedDict()
        self._users: dict[SlideMap, int] = {}

    def list_names(self) -> list[str]:
        """Lists the folders of the finished maps."""
        return [folder.name for folder, _ in results.list_finished(self._workdir)]

    @contextmanager
    def use(self, name: str) -> Iterator[SlideMap]:
        """Gives an open map, which is not closed in the block.

        Raises:
          InputError: there is no such map, or it is damaged.
        """
        opened = self._get(name)
        try:
            yield opened
        finally:
            with self._lock:
                self._users[opened] -= 1
                self._close_unused()

    def _get(self, name: str) -> SlideMap:
        with self._lock:
            folder = self.find_folder(name)
            version = (folder / results.SUMMARY).stat().st_mtime
            known, of_version = self._open.get(name, (None, 0.0))
            if known is None or of_version != version:
                known = SlideMap(folder, self._find_slide)
                self._open[name] = known, version
            self._open.move_to_end(name)
            self._users[known] = self._users.get(known, 0) + 1
            return known

    def find_folder(self, name: str) -> Path:
        """Finds the folder of a finished map.

        Raises:
          InputError: there is no such map, or the name leads elsewhere.
        """
        folder = self._workdir / name
        if not _is_plain(name) or results.read_summary(folder) is None:
            raise InputError(f"{self._workdir}: no finished map {name!r}")
        return folder

    def find_preview(self, name: str) -> Path:
        """Finds the picture of a map that is not finished.

        Raises:
          InputError: there is none.
        """
        path = self._workdir / name / PREVIEW
        if not _is_plain(name) or not path.is_file():
            raise InputError(f"{self._workdir}: no picture of an unfinished map {name!r}")
        return path

    def find_slide(self, name: str) -> SlideFile:
        """Finds the slide of a map; it is called as the folder of the map.

        Raises:
          InputError: there is no such map.
        """
        summary = results.read_summary(self.find_folder(name))
        assert summary is not None
        return SlideFile(self._find_slide(summary), name, _get_given_mpp(summary))

    def _close_unused(self) -> None:
        kept = {opened for opened, _ in list(self._open.values())[-_OPEN:]}
        for opened in [each for each, users in self._users.items() if not users]:
            if opened not in kept:
                del self._users[opened]
                opened.close()
        for name in [name for name, (each, _) in self._open.items() if each not in self._users]:
            del self._open[name]

    def _find_slide(self, summary: Mapping[str, Any]) -> Path:
        path = Path(summary["file"])
        return path if self._slides is None else self._slides / path.name

    def close(self) -> None:
        """Closes all maps; nobody may be using one."""
        with self._lock:
            for opened in self._users:
                opened.close()
            self._users.clear()
            self._open.clear()
