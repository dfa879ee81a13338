"""Links and commands on the pages lead to something: files, configurations and their fields."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from wsss_jax import config as config_lib

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/*.md", "data/*.md", "benchmarks/*.md")
    for path in REPOSITORY.glob(pattern)
)
CONFIGURATIONS = {
    f"configs/{path.name}": importlib.import_module(f"configs.{path.stem}").get_config
    for path in (REPOSITORY / "configs").glob("*.py")
    if path.stem != "__init__" and not path.stem.startswith("base")
}


def _get_anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", (REPOSITORY / page).read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in _get_anchors(target), f"{page}: {link}"


def _has(config: Any, field: str) -> bool:
    """Whether a configuration has a field such as "data.root"."""
    for part in field.split("."):
        if part not in config:
            return False
        config = config[part]
    return True


def _set(config: Any, field: str, text: str) -> None:
    """Sets a field as the command line does."""
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    before = config[name]
    config[name] = text if isinstance(before, str) else type(before)(ast.literal_eval(text))


def test_commands_name_configurations_and_set_fields_to_possible_values():
    checked = 0
    for page in PAGES:
        content = (REPOSITORY / page).read_text().replace("\\\n", " ")
        for line in re.findall(r"^ *(python main\.py .*)$", content, re.MULTILINE):
            words = shlex.split(line, comments=True)[2:]
            flags = dict(word.removeprefix("--").split("=", 1) for word in words)
            path, _, argument = flags["config"].partition(":")
            get_config = CONFIGURATIONS[path]
            config = get_config(argument) if argument else get_config()
            for name, text in flags.items():
                if (field := name.removeprefix("config.")) != name:
                    assert _has(config, field), f"{page}: {path} has no {field}"
                    _set(config, field, text)
            config_lib.validate(config)
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_fields_in_the_text_exist(page):
    configs = [get_config() for get_config in CONFIGURATIONS.values()]
    # Commands are checked above, with the arguments of their configuration.
    content = (REPOSITORY / page).read_text().replace("\\\n", " ")
    content = re.sub(r"^ *python main\.py .*$", "", content, flags=re.MULTILINE)
    for field in re.findall(r"--config\.([a-z_0-9.]*\w)", content):
        assert any(_has(config, field) for config in configs), field
