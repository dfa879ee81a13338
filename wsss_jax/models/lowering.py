"""The ways in which convolutions can be computed, and which were chosen by measurement.

Nothing here computes: `convolution` does. Every way gives the same within rounding.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Direction = Literal["forward", "input gradient", "kernel gradient"]
Way = Literal[
    "XLA", "product", "copied", "inside", "space to batch", "Winograd 2x2", "Winograd 4x4"
]

DIRECTIONS: tuple[Direction, ...] = ("forward", "input gradient", "kernel gradient")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # as `jax.lax.platform_dependent` names them

_CHOICE = re.compile(
    r"(?P<platform>\w+), (?P<size>\d+)x\d+, (?P<channels>\d+) to (?P<features>\d+)"
    r" at (?P<height>\d+)(?:x(?P<width>\d+))?(?:, stride (?P<stride>\d+))?"
    r"(?:, dilation (?P<dilation>\d+))?: (?P<ways>[\w ]+(?:, [\w ]+)*)"
)


class Shape(NamedTuple):
    """A convolution of an image (height, width, channels) to `features` channels."""

    height: int
    width: int
    channels: int
    features: int
    size: int
    stride: int
    dilation: int

    @classmethod
    def of(
        cls, x_shape: Sequence[int], kernel_shape: Sequence[int], stride: int, dilation: int
    ) -> "Shape":
        """Returns that of an input (B, H, W, D) and a kernel (k, k, D, F)."""
        _, height, width, channels = x_shape
        return cls(height, width, channels, kernel_shape[3], kernel_shape[0], stride, dilation)

    def crop(self) -> "Shape":
        """Returns it with a kernel that is no wider than what reaches the image.

        Farther from the center, a dilated kernel meets only padding. A kernel of one pixel has no
        dilation.
        """
        reach = min(self.size // 2, (max(self.height, self.width) - 1) // self.dilation)
        return self._replace(size=2 * reach + 1, dilation=self.dilation if reach else 1)

    def __str__(self) -> str:
        text = f"{self.size}x{self.size}, {self.channels} to {self.features} at {self.height}"
        text += f"x{self.width}" if self.width != self.height else ""
        text += f", stride {self.stride}" if self.stride > 1 else ""
        return text + (f", dilation {self.dilation}" if self.dilation > 1 else "")


class Choice(NamedTuple):
    """The ways of one shape on one platform, in the order of `DIRECTIONS`."""

    platform: str
    shape: Shape
    ways: tuple[Way, ...]

    def __str__(self) -> str:
        return f"{self.platform}, {self.shape}: {', '.join(self.ways)}"


def parse_choice(text: str) -> Choice:
    """Reads what `str` makes of a `Choice`.

    Raises:
      ValueError: it is none, or a way that does not suit the platform or the shape.
    """
    match = _CHOICE.fullmatch(text)
    if match is None or match["platform"] not in PLATFORMS:
        raise ValueError(f"{text!r} is no choice of ways")
    height = int(match["height"])
    shape = Shape(
        height,
        int(match["width"] or height),
        *(int(match[name]) for name in ("channels", "features", "size")),
        *(int(match[name] or 1) for name in ("stride", "dilation")),
    )
    named = match["ways"].split(", ")
    choice = Choice(match["platform"], shape, tuple(named))  # type: ignore[arg-type]
    if str(choice) != text or len(named) != len(DIRECTIONS):
        raise ValueError(f"{text!r} is no choice of ways")
    for direction, way in zip(DIRECTIONS, choice.ways, strict=True):
        possible = list_ways(choice.platform, direction, shape)
        if way not in possible:
            raise ValueError(
                f"{text!r}: the {direction} can be computed by {', '.join(possible)} only"
            )
    return choice


def list_ways(platform: str, direction: Direction, shape: Shape) -> tuple[Way, ...]:
    """Lists the ways in which a convolution, or a gradient of it, can be computed on a platform."""
    ways: list[Way] = ["XLA"]
    if platform != "cpu":
        ways.append("inside")
    else:
        if direction != "forward" or shape.size == 1:
            ways.append("product")
        if direction == "kernel gradient":
            ways.append("copied")
        if shape.size > 1:
            ways.append("inside")
        if shape.size == 3 and shape.stride == 1:
            ways += ["Winograd 2x2", "Winograd 4x4"]
    if shape.size > 1 and shape.dilation > 1 and shape.stride == 1:
        ways.append("space to batch")
    return tuple(ways)


class Lowering(NamedTuple):
    """How a network computes its convolutions.

    Attributes:
      tensorfloat32: products of float32 may be rounded to TF32 on accelerators; see
        `convolution.convolve`.
      choices: where there is none, the rules in the code decide.
    """

    tensorfloat32: bool = False
    choices: tuple[Choice, ...] = ()

    def find(self, platform: str, direction: Direction, shape: Shape) -> Way | None:
        """Returns the way that was chosen for a shape; None if none was."""
        for choice in self.choices:
            if choice.platform == platform and choice.shape == shape:
                return choice.ways[DIRECTIONS.index(direction)]
        return None


BY_RULES = Lowering()
