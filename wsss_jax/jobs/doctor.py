"""Checks the installation and, if a slide is named, describes it and what segmenting it takes."""

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
from wsss_jax.findings import OK, PROBLEM, Finding
from wsss_jax.methods.gate import check_gate

FIELDS = {**rules.SLIDES, "slide": rules.TEXT, "phase2": rules.TEXT}
check = check_gate
REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OPTIONAL = {  # package -> its use
    "wsidicom": "DICOM slides that OpenSlide does not take",
    "highdicom": "--config.dicom_seg",
    "ray": "--config.engine=ray",
    "torch": "the comparison with PyTorch",
}
_WRAPPED = textwrap.TextWrapper(
    100, subsequent_indent=" " * 26, break_long_words=False, break_on_hyphens=False
)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Prints findings, line by line.

    Raises:
      InputError: there are problems.
    """
    del workdir  # it only prints
    problems = _print(check_installation())
    if config.slide and not problems:
        from wsss_jax.slides import estimate  # its packages may not be installed

        problems = _print(estimate.examine(config_lib.freeze(config)))
    if problems:
        raise InputError(f"{problems} {'problem' if problems == 1 else 'problems'}: see above")


def _print(findings: Iterable[Finding]) -> int:
    """Prints findings as they come; returns the number of problems."""
    problems = 0
    for subject, text, state in findings:
        print(_WRAPPED.fill(f"{state:8}{subject:18}{text}"), flush=True)
        problems += state == PROBLEM
    return problems


def check_installation() -> Iterator[Finding]:
    """Checks the versions of packages, and that the devices compute."""
    yield Finding("Python", platform.python_version())
    yield from _check_packages()
    yield _check_openslide()
    for name, purpose in OPTIONAL.items():
        yield Finding(name, f"{_find_version(name) or 'not installed'} (optional, for {purpose})")
    for device in jax.local_devices():
        yield _check_device(device)


def _check_packages() -> Iterator[Finding]:
    if REQUIREMENTS.is_file():
        lines = REQUIREMENTS.read_text().splitlines()
    else:  # installed without the checkout
        lines = importlib.metadata.requires("wsss_jax") or []
    texts = filter(None, (line.partition("#")[0].strip() for line in lines))
    requirements = [each for each in map(Requirement, texts) if each.marker is None]
    remedy = "pip install -r requirements.txt"
    matching = []
    for requirement in requirements:
        version = _find_version(requirement.name)
        if version is None:
            yield Finding(requirement.name, f"is not installed: {remedy}", PROBLEM)
        elif not requirement.specifier.contains(version):
            text = f"{version} is not {requirement.specifier}: {remedy}"
            yield Finding(requirement.name, text, PROBLEM)
        else:
            matching.append(f"{requirement.name} {version}")
    yield Finding("packages", ", ".join(matching))


def _check_openslide() -> Finding:
    try:
        import openslide

        return Finding("OpenSlide library", openslide.__library_version__)
    except (ImportError, OSError) as error:
        text = f"cannot be loaded ({error}): pip install openslide-python openslide-bin"
        return Finding("OpenSlide library", text, PROBLEM)


def _check_device(device: jax.Device) -> Finding:
    ones = jax.device_put(np.ones((64, 64), np.float32), device)
    start = time.monotonic()
    is_right = float(jnp.dot(ones, ones).sum()) == 64.0**3
    text = f"{device.device_kind}: computes ({time.monotonic() - start:.1f} s to compile)"
    wrong = f"{device.device_kind} computes wrongly: reinstall jax for its driver"
    subject = f"device {device.id}"
    return Finding(subject, text, OK) if is_right else Finding(subject, wrong, PROBLEM)


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
