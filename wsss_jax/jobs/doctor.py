"""Checks the installation and, if one is named, what segmenting a slide would take."""

import importlib.metadata
import platform
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from packaging.requirements import Requirement

from wsss_jax import config as config_lib
from wsss_jax import config_rules as rules
from wsss_jax.errors import InputError
from wsss_jax.findings import Finding

FIELDS = {**rules.SLIDES, "slide": rules.TEXT, "phase2": rules.TEXT}
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OPTIONAL = {  # what for
    "wsidicom": "DICOM slides that OpenSlide does not take",
    "ray": "--config.engine=ray",
    "torch": "the comparison with PyTorch",
}
_WRAPPED = textwrap.TextWrapper(
    100, subsequent_indent=" " * 26, break_long_words=False, break_on_hyphens=False
)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints what is found, line by line.

    Raises:
      InputError: there are problems.
    """
    del workdir  # it only prints
    problems = _print(installation())
    if config.slide and not problems:
        from wsss_jax.slides import estimate  # what it needs may not be installed

        problems = _print(estimate.examine(config_lib.freeze(config)))
    if problems:
        raise InputError(f"{problems} {'problem' if problems == 1 else 'problems'}: see above")


def _print(findings: Iterable[Finding]) -> int:
    """Prints findings as they come; returns how many are problems."""
    problems = 0
    for what, text, is_problem in findings:
        head = f"{'PROBLEM' if is_problem else 'ok':8}{what:18}"
        print(_WRAPPED.fill(head + text), flush=True)
        problems += is_problem
    return problems


def installation() -> Iterator[Finding]:
    """Versions, devices, and whether they compute."""
    yield Finding("Python", platform.python_version())
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    remedy = "pip install -r requirements.txt"
    fine = []
    for requirement in requirements:
        version = _version(requirement.name)
        if version is None:
            yield Finding(requirement.name, f"is not installed: {remedy}", True)
        elif not requirement.specifier.contains(version):
            text = f"{version} is not {requirement.specifier}: {remedy}"
            yield Finding(requirement.name, text, True)
        else:
            fine.append(f"{requirement.name} {version}")
    yield Finding("packages", ", ".join(fine))
    try:
        import openslide

        yield Finding("OpenSlide library", openslide.__library_version__)
    except (ImportError, OSError) as error:
        text = f"cannot be loaded ({error}): pip install openslide-python openslide-bin"
        yield Finding("OpenSlide library", text, True)
    for name, purpose in OPTIONAL.items():
        yield Finding(name, f"{_version(name) or 'not installed'} (optional, for {purpose})")
    for device in jax.local_devices():
        ones = jax.device_put(np.ones((64, 64), np.float32), device)
        begun = time.monotonic()
        right = float(jnp.dot(ones, ones).sum()) == 64.0**3
        text = f"{device.device_kind}: computes ({time.monotonic() - begun:.1f} s to compile)"
        wrong = f"{device.device_kind} computes wrongly: reinstall jax for its driver"
        yield Finding(f"device {device.id}", text if right else wrong, not right)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
