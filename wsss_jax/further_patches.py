"""Training patches of further folders, such as corrections of maps, beside those of a data set."""

from collections.abc import Sequence
from pathlib import Path

from data import folders
from data.dataset import Dataset, load_dataset, strip_label
from data.folders import Patch
from data.patients import name_patient
from wsss_jax.errors import InputError

_FIELD = "config.data.more"
_SAME_MPP = 0.05  # share by which resolutions may differ that count as one


def list_patches(
    further: Sequence[str], root: Path, dataset: Dataset, patches: Sequence[Patch], *, resize: bool
) -> list[Patch]:
    """Lists the labeled training patches of further folders.

    Args:
      further: the folders, each laid out as a data set; only their training patches are read.
      root: folder of the data set.
      dataset: its description, which must be that of the others, too.
      patches: training patches of the data set.
      resize: whether patches are resized, so that their resolution may be another.

    Raises:
      InputError: no such folder, one of other classes or another resolution, a patch with a name
        that is taken, or one of a patient whose patches are for validation or test.
    """
    held_out = _find_held_out(root) if further else {}
    names = {_fold(patch): root for patch in patches}
    added: list[Patch] = []
    for folder in map(Path, further):
        _check_description(folder, dataset, resize=resize)
        for patch in folders.list_labeled_patches(folder, "train", dataset):
            name = _fold(patch)
            if name in names:
                raise InputError(
                    f"{_FIELD}: {patch.image} has the name of a patch in {names[name]}, but for a "
                    "label: remove one of the two"
                )
            patient = name_patient(patch.stem)
            if patient in held_out:
                raise InputError(
                    f"{_FIELD}: {patch.image} is of {patient}, of which {held_out[patient]} is for "
                    "validation or test: scores would be too good; remove the patches of one"
                )
            names[name] = folder
            added.append(patch)
    return added


def _fold(patch: Patch) -> str:
    """Returns the same text for names that differ by their label, or that file systems mix up."""
    return folders.fold_name(strip_label(patch.stem))


def _check_description(folder: Path, dataset: Dataset, *, resize: bool) -> None:
    """Refuses a folder whose labels or pixels mean something else.

    Raises:
      InputError: names the field of its description.
    """
    if not folder.is_dir():
        raise InputError(f"{_FIELD}: no such folder {folder}; export the labels first, or leave it")
    own = load_dataset("", folder)
    for field in ("classes", "white", "label_notation"):
        if getattr(own, field) != getattr(dataset, field):
            raise InputError(
                f"{_FIELD}: {folder / 'dataset.json'}: {field} is {getattr(own, field)}, but the "
                f"data set has {getattr(dataset, field)}: name folders of the same classes"
            )
    if resize or not own.mpp or not dataset.mpp:
        return
    if abs(own.mpp / dataset.mpp - 1) > _SAME_MPP:
        raise InputError(
            f"{_FIELD}: the patches of {folder} have {own.mpp:g} micrometers per pixel, those of "
            f"the data set {dataset.mpp:g}: cut them at that resolution"
        )


def _find_held_out(root: Path) -> dict[str, str]:
    """Finds the patients, as far as names tell, whose patches are for validation or test.

    Returns:
      Patient -> path of one of the patches.
    """
    held_out: dict[str, str] = {}
    for _, path in folders.list_held_out(root):
        if patient := name_patient(path.stem):
            held_out.setdefault(patient, str(path))
    return held_out
