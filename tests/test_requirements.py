"""pyproject.toml is the one list of what the project needs; the requirements files follow it."""

import importlib.metadata
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from wsss_jax.jobs import doctor

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PYTHONS = [
    text.rpartition(" ")[2]
    for text in PROJECT["classifiers"]
    if text.startswith("Programming Language :: Python :: 3.")
]
EXTRAS_OF_FILES = {  # each file pins what these extras ask for
    "requirements-test.txt": ("test", "lint"),
    "requirements-torch.txt": ("torch",),
    "requirements-ray.txt": ("ray",),
}


def _read(name: str) -> list[Requirement]:
    """The requirements in a file, without comments."""
    lines = (REPOSITORY / name).read_text().splitlines()
    texts = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(text) for text in texts if text]


def _get_dependencies(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for: the dependencies, or those of some extras."""
    optional = PROJECT["optional-dependencies"]
    texts = [each for extra in extras for each in optional[extra]]
    return [Requirement(text) for text in (texts if extras else PROJECT["dependencies"])]


def _get_pin(requirement: Requirement) -> Version:
    """The version that a requirement names, which must be exact."""
    specifiers = list(requirement.specifier)
    assert [each.operator for each in specifiers] == ["=="], f"{requirement} is not exact"
    return Version(specifiers[0].version)


def _applies(requirement: Requirement, python: str) -> bool:
    """Whether a requirement is one of Python `python` on Linux, without extras."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _read_lock(python: str) -> dict[str, Version]:
    """The lock's version of each package on a Python."""
    pins = defaultdict(list)
    for requirement in _read("requirements.lock"):
        if _applies(requirement, python):
            pins[canonicalize_name(requirement.name)].append(_get_pin(requirement))
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}
    return {name: found[0] for name, found in pins.items()}


def _describe(requirements: list[Requirement]) -> list[str]:
    return sorted(f"{canonicalize_name(each.name)}{each.specifier}" for each in requirements)


def test_python_versions_agree():
    assert PYTHONS == ["3.11", "3.12", "3.13", "3.14"]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(python in supported for python in PYTHONS) and "3.10" not in supported


def test_requirements_are_the_dependencies():
    assert _describe(_read("requirements.txt")) == _describe(_get_dependencies())


def test_every_requirements_file_is_known():
    files = {path.name for path in REPOSITORY.glob("requirements-*.txt")}
    assert files == set(EXTRAS_OF_FILES)


@pytest.mark.parametrize("name", EXTRAS_OF_FILES)
def test_pins_satisfy_their_extras(name):
    extras = {each.name: each for each in _get_dependencies(*EXTRAS_OF_FILES[name])}
    pins = {each.name: _get_pin(each) for each in _read(name)}
    assert set(pins) == set(extras)
    for package, version in pins.items():
        assert version in extras[package].specifier, f"{package} {version}: {extras[package]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_the_dependencies(python):
    pins = _read_lock(python)
    for requirement in _get_dependencies():
        version = pins[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement.name} {version}: {requirement}"


def test_old_pythons_get_the_jax_that_works():
    # 0.10.2, the newest for Python 3.11, corrupts memory; later ones are for Python 3.12 and up.
    versions = {python: _read_lock(python)["jax"] for python in PYTHONS}
    assert versions.pop("3.11") == Version("0.10.1")
    assert min(versions.values()) >= Version("0.12")
    for python in PYTHONS:
        assert _read_lock(python)["jaxlib"] == _read_lock(python)["jax"]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_what_its_packages_need(python):
    """By the metadata of those that are installed here in the locked version."""
    pins = _read_lock(python)
    seen = 0
    for name, version in pins.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(distribution.version) != version:
            continue
        seen += 1
        for text in distribution.requires or ():
            needed = Requirement(text)
            if _applies(needed, python):
                assert canonicalize_name(needed.name) in pins, f"{name} needs {needed}"
                pin = pins[canonicalize_name(needed.name)]
                assert needed.specifier.contains(pin, prereleases=True), f"{name}: {needed}"
    if seen < len(pins) / 2:
        pytest.skip("most packages are installed in other versions than the locked ones")


def test_doctor_knows_the_optional_packages():
    optional = {each.name for each in _get_dependencies("dicom", "ray", "torch")}
    assert optional == set(doctor.OPTIONAL)


def test_the_version_is_the_one_of_the_citation():
    lines = (REPOSITORY / "CITATION.cff").read_text().splitlines()
    assert f"version: {PROJECT['version']}" in lines
