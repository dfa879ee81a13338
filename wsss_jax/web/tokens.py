"""The secrets that open people's pages, kept so that addresses hold after a restart."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from wsss_jax.errors import InputError
from wsss_jax.files import atomic_path

_FILE = "tokens.json"


def load_tokens(workdir: Path, names: Sequence[str]) -> dict[str, str]:
    """Loads the token of each person; who has none gets one.

    Args:
      workdir: where they are kept, readable by its owner alone.
      names: of the people.

    Raises:
      InputError: the file is damaged.
    """
    path = workdir / _FILE
    known: dict[str, str] = {}
    if path.exists():
        try:
            known = json.loads(path.read_bytes())
            if not all(isinstance(token, str) and len(token) >= 32 for token in known.values()):
                raise ValueError("no tokens")
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"{path}: damaged ({error}): remove it, and hand out the new addresses"
            ) from error
    tokens = {name: known.get(name) or secrets.token_urlsafe(24) for name in names}
    if known != known | tokens:
        with atomic_path(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(known | tokens, indent=2) + "\n", encoding="utf-8")
    return tokens
