"""The slides whose maps are corrected: which patch is around a place, and its pixels."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.labels import correction_folder
from wsss_jax.labels.correction_folder import Record, SlideRecord
from wsss_jax.labels.correction_splits import TrainingSlides, place_slide
from wsss_jax.sampling import summaries
from wsss_jax.sampling.positions import find_area
from wsss_jax.sampling.splits import Patient
from wsss_jax.slides.reading import catalog
from wsss_jax.slides.reading.catalog import SlideFile
from wsss_jax.slides.reading.slide import check_mpp, open_slide
from wsss_jax.slides.reading.view import View

_OPEN_SLIDES = 4  # each holds files
_TRAIN = "train"


class CorrectedSlides:
    """Slides that are opened when they are needed. One thread at a time may call its methods.

    Attributes:
      record: of the folder; slides that are new are added.
    """

    def __init__(
        self,
        root: Path,
        record: Record,
        training: TrainingSlides,
        patients: Mapping[str, Patient],
    ):
        """Takes the slides of earlier starts, whose splits are found anew.

        Args:
          root: folder of corrections.
          record: what it holds.
          training: slides that the networks learned from.
          patients: by slide, as the user gives them.
        """
        self.record, self._root = record, root
        self._training, self._patients = training, patients
        self._open: OrderedDict[SlideFile, View] = OrderedDict()
        for name, slide in record.slides.items():
            record.slides[name] = self._assign_split(self._find_file(name), slide)
        correction_folder.write_record(root, record)

    def close(self) -> None:
        """Closes the slides."""
        for view in self._open.values():
            view.slide.close()
        self._open.clear()

    def find_split(self, file: SlideFile) -> str:
        """Finds in which split a slide is, which may have no corrections yet."""
        known = self.record.slides.get(file.name)
        return known.split if known else place_slide(file, self._training, self._patients).split

    def find_patch(self, file: SlideFile, center: tuple[float, float]) -> str:
        """Finds the patch around a place, moved inside the slide at its borders.

        Args:
          file: the slide.
          center: x and y in level-0 pixels.

        Returns:
          Its name.

        Raises:
          InputError: the slide cannot be read, is another one than before, or has no room.
        """
        view = self._get_view(file)
        half = self.record.field.size / 2
        corner = [middle / scale - half for middle, scale in zip(center, view.scale, strict=True)]
        x, y = self._fit(view, corner)
        # A place is known by its level-0 pixels; several working pixels share one where a slide is
        # coarser than the patches.
        return correction_folder.name_patch(
            file.name, round(x * view.scale[0]), round(y * view.scale[1])
        )

    def cut(self, name: str, file: SlideFile | None = None) -> None:
        """Cuts a patch out of its slide and writes it.

        Args:
          name: of the patch.
          file: the slide; None: the file that it was in before.

        Raises:
          InputError: as of `find_patch`.
        """
        slide, left, top = correction_folder.get_place(name)
        view = self._get_view(file or self._find_file(slide))
        x, y = self._fit(view, [left / view.scale[0], top / view.scale[1]])
        image = view.read_alone(x, y, self.record.field.size)
        correction_folder.write_picture(self._root / name, image)

    def _fit(self, view: View, corner: list[float]) -> tuple[int, int]:
        """Finds the nearest corner, in working pixels, of a patch inside the scanned area."""
        area, size = find_area(view), self.record.field.size
        right, bottom = area.right - size, area.bottom - size
        if right < area.left or bottom < area.top:
            raise InputError(
                f"{view.slide.path}: no room for a patch of {size} pixels at {view.mpp:g} "
                "micrometers per pixel"
            )
        x, y = map(round, corner)
        return min(max(x, area.left), right), min(max(y, area.top), bottom)

    def _find_file(self, name: str) -> SlideFile:
        slide = self.record.slides[name]
        return SlideFile(Path(slide.file), name, slide.mpp)

    def _get_view(self, file: SlideFile) -> View:
        """Opens a slide, and records it if it is new; a few stay open."""
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if not file.name or Path(file.name).name != file.name:
            raise InputError(f"{file.name!r} is no name of a slide: rename it")
        summaries.check_slide_name(file)
        slide = open_slide(file.path, file.mpp)
        try:
            view = View(slide, self.record.field.mpp, self.record.field.resampling)
            self._record_slide(file, view)
        except BaseException:
            slide.close()
            raise
        self._open[file] = view
        while len(self._open) > _OPEN_SLIDES:
            self._open.popitem(last=False)[1].slide.close()
        return view

    def _record_slide(self, file: SlideFile, view: View) -> None:
        """Records a slide before its first patch is cut.

        Raises:
          InputError: there are corrections of another slide of that name, or at another resolution.
        """
        content, slide_mpp = catalog.fingerprint(file.path), check_mpp(view.slide)
        before = self.record.slides.get(file.name)
        if before is not None and before.content != content:
            raise InputError(
                f"{file.path}: {self._root} has corrections of a slide of other content with the "
                f"name {file.name}, {before.file}: rename this one, or name another folder"
            )
        if before is not None and before.slide_mpp != slide_mpp:
            raise InputError(
                f"{file.path}: {self._root} has corrections of it at {before.slide_mpp[0]:g} "
                f"micrometers per pixel, now it has {slide_mpp[0]:g}: set it as it was, or name "
                "another folder"
            )
        path = str(file.path.absolute())
        new = SlideRecord(path, file.mpp, slide_mpp, content, "", _TRAIN)
        new = self._assign_split(file, before._replace(file=path) if before else new)
        if new != before:
            self.record.slides[file.name] = new
            correction_folder.write_record(self._root, self.record)

    def _assign_split(self, file: SlideFile, slide: SlideRecord) -> SlideRecord:
        """Finds patient and split; a slide that was for validation or test stays so."""
        found = place_slide(file, self._training, self._patients)
        if found.split == _TRAIN != slide.split:
            return slide  # the data set that said so may not be at hand any more
        return slide._replace(patient=found.patient, split=found.split)
