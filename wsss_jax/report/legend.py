"""The names and colors of classes, which go together."""

from collections.abc import Sequence
from typing import NamedTuple

Color = tuple[int, int, int]  # RGB, 0..255
EXCLUDED_NAME = "white background / excluded"


class Legend(NamedTuple):
    """The classes of a map in the order of its label values.

    Attributes:
      names: C class names.
      palette: C + 1 colors: one per class, then that of the excluded value C (white background, or
        not annotated).
    """

    names: Sequence[str]
    palette: Sequence[Color]

    @property
    def excluded(self) -> int:
        """The label value of what belongs to no class: C."""
        return len(self.names)

    def list_entries(self) -> list[tuple[Color, str]]:
        """Lists color and name of each class, with the label value before the name: "0 tumor"."""
        return [
            (color, f"{value} {name}")
            for value, (color, name) in enumerate(zip(self.palette, self.names))
        ]
