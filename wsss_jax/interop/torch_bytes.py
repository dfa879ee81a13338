"""Bounded reads of a PyTorch file, and the errors of its readers."""

import os
from io import BufferedReader
from typing import Any

import numpy as np

from wsss_jax.errors import InputError

RESAVE = "save the weights alone, torch.save(model.state_dict(), path), and use that file"


class ContentsError(InputError):
    """What is wrong in a file, and the remedy; `torch_files.load` puts the path before it."""


class DamageError(ContentsError):
    """The contents of a file contradict each other."""

    def __init__(self, problem: str):
        super().__init__(f"{problem}; the file is cut short or damaged: copy or download it again")


def read_bytes(file: BufferedReader, nbytes: int) -> np.ndarray:
    """Reads the next bytes of a file, uint8; memory is taken only for bytes the file has."""
    check_left(file, nbytes)
    data = np.empty(nbytes, np.uint8)
    if file.readinto(data) != nbytes:
        raise DamageError("data is missing")
    return data


def check_left(file: BufferedReader, nbytes: int) -> None:
    """Refuses a file with fewer bytes left."""
    if nbytes > os.fstat(file.fileno()).st_size - file.tell():
        raise DamageError("data is missing")


def quote(name: Any) -> str:
    """Quotes a name from a file, short and escaped for a line of text."""
    return repr(name[:80])[:90] if isinstance(name, str) else f"of type {type(name).__name__}"
