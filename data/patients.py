"""Whose a slide or a patch is, by its name."""

import re

# The participant in the barcodes of The Cancer Genome Atlas: project, site, participant.
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)
# What patches are named by that were cut from slides ("sample") or regions ("prepare").
_PLACE = re.compile(r"_x\d{5,}_y\d{5,}")


def find_barcode(name: str) -> str:
    """Finds the participant in a TCGA barcode; "" if a name has none."""
    barcode = _TCGA.search(name)
    return barcode[0].upper() if barcode else ""


def name_origin(stem: str) -> str:
    """Names the slide or region that a patch was cut from; "" if its name does not say."""
    places = [*_PLACE.finditer(stem)]
    return stem[: places[-1].start()] if places else ""


def name_patient(stem: str) -> str:
    """Names whose a patch is: participant of a TCGA barcode, else slide or region; "" if neither.

    Args:
      stem: name of the patch, without ending.
    """
    return find_barcode(stem) or name_origin(stem)
