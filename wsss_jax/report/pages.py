"""HTML pages: one file each that needs no script and no network.

Templates escape every text: names of slides, classes and folders may hold any character.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from wsss_jax.files import atomic_path
from wsss_jax.wording import format_count

TEMPLATES = Path(__file__).parent / "templates"


def make_link(path: str) -> str:
    """Makes a URL of a relative path; "./" keeps a colon in it from being read as a scheme."""
    return "./" + quote(os.fsencode(path))


def make_data_url(media_type: str, data: bytes) -> str:
    """Makes a URL that holds a picture itself."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"format_count": format_count, "link": make_link}


def write_page(path: Path | str, template: str, filters: Mapping[str, Any], **values: Any) -> None:
    """Writes a page, atomically; parents are created.

    Args:
      path: of the HTML file.
      template: name of its file.
      filters: of the template, besides those of all.
      **values: what the template shows.
    """
    environment = _ENVIRONMENT.overlay()
    environment.filters = {**_ENVIRONMENT.filters, **filters}
    page = environment.get_template(template).render(values)
    with atomic_path(path) as temporary:
        # File names that cannot be decoded hold surrogates.
        temporary.write_text(page + "\n", "utf-8", errors="backslashreplace")
