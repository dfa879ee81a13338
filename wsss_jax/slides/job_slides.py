"""The slides of a job: found, named, and known again when the job is started once more."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import ml_collections

from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.mpp import read_mpp_table


def find_slides(
    config: ml_collections.ConfigDict, is_results: Callable[[Path], bool]
) -> list[SlideFile]:
    """Finds the slides of a job with their resolutions.

    Args:
      config: with `slides`, `slide_mpp` and `mpp_table`.
      is_results: see `catalog.find_slides`.

    Raises:
      InputError: as of `catalog.find_slides`, `catalog.name_slides` and `mpp.read_mpp_table`.
    """
    table = read_mpp_table(Path(config.mpp_table)) if config.mpp_table else {}
    paths = catalog.find_slides(config.slides, is_results)
    slides = catalog.name_slides(paths, config.slide_mpp, table)
    report_unknown(config.mpp_table, table, slides)
    return slides


def report_unknown(path: str, lines: Iterable[str], slides: Sequence[SlideFile]) -> None:
    """Prints the lines of a table that fit none of the slides.

    Args:
      path: of the table.
      lines: the slides that it names.
      slides: those of the job.
    """
    names = [name for file in slides for name in (file.name, file.path.name, file.path.stem)]
    known = set(map(catalog.normalize_name, names))
    unknown = sorted(name for name in lines if catalog.normalize_name(name) not in known)
    if unknown:
        print(f"{path}: lines that fit none of the slides: {', '.join(unknown)}")


def use_earlier_names(
    slides: Sequence[SlideFile], earlier: Mapping[str, str], folder: Path, *, may_rename: bool
) -> list[SlideFile]:
    """Gives each slide the name under which the folder has its results, if it has some.

    A slide's name changes when another slide with the same name comes in. Without `may_rename`
    (tissue masks are found by the new names) the earlier folder is only printed.

    Args:
      slides: those of the job.
      earlier: absolute path of a slide -> the name that it had.
      folder: of the folders with the results of each slide.
      may_rename: see above.
    """
    taken = {slide.name for slide in slides}
    renamed = []
    for slide in slides:
        name = earlier.get(str(slide.path.absolute()), slide.name)
        if name != slide.name and name not in taken and not (folder / slide.name).exists():
            if may_rename:
                print(f"{slide.path}: its results stay in {folder / name}, not {slide.name}")
                slide = slide._replace(name=name)
            else:
                print(f"{slide.path}: {folder / name} has an earlier map of it; remove that")
        renamed.append(slide)
    return renamed
