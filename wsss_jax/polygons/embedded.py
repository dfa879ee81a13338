"""Pictures that are in a JSON file as base64."""

import base64
import binascii
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsss_jax.errors import InputError


def read_embedded(
    text: str, path: Path, where: str, read: Callable[[Path], np.ndarray]
) -> np.ndarray:
    """Reads an embedded picture by a function that reads one from a file.

    Args:
      text: base64 of a picture file.
      path: the JSON file, for messages.
      where: names the picture in it.
      read: raises `InputError` for what it cannot read.

    Raises:
      InputError: names the file and the picture.
    """
    try:
        content = base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{path}: {where} is not base64 ({error}); save the file again") from error
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture"
        picture.write_bytes(content)
        try:
            return read(picture)
        except InputError as error:
            problem = str(error).removeprefix(f"{picture}: ")
            raise InputError(f"{path}: {where}: {problem}") from error
