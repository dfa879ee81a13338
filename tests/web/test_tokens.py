"""The secrets in people's addresses are kept, and readable by their owner alone."""

import stat

import pytest

from wsss_jax.errors import InputError
from wsss_jax.web.tokens import load_tokens


def test_addresses_hold_after_a_restart_and_for_others_who_come(tmp_path):
    first = load_tokens(tmp_path / "view", ["Ann"])
    both = load_tokens(tmp_path / "view", ["Bob", "Ann"])
    assert both["Ann"] == first["Ann"] != both["Bob"] and len(both["Bob"]) >= 32
    assert load_tokens(tmp_path / "view", ["Bob"]) == {"Bob": both["Bob"]}
    assert load_tokens(tmp_path / "view", ["Ann"]) == first  # also of one who was left out
    assert stat.S_IMODE((tmp_path / "view" / "tokens.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "[]", '{"Ann": 3}', '{"Ann": "short"}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "tokens.json").write_text(content)
    with pytest.raises(InputError, match=r"tokens\.json: damaged .*: remove it"):
        load_tokens(tmp_path, ["Ann"])
