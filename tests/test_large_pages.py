"""Python starts itself again with large pages, once, where they must be asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
from wsss_jax import large_pages
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], flush=True)
large_pages._PAGES = Path(sys.argv[1])
if "settrace" in sys.argv:
    sys.settrace(lambda *_: None)
if "monitoring" in sys.argv:
    sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, "debugger")
large_pages.restart_with()
print("at work")
"""
ASKED_FOR = "glibc.malloc.hugetlb=1"


def _start(pages, *arguments, tunables=None, runner=()):
    """Returns the lines that all starts of the script print."""
    script = pages.parent / "a script.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {} if tunables is None else {"GLIBC_TUNABLES": tunables}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-W", "ignore", *runner, str(script), str(pages), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    *starts, last = done.stdout.splitlines()
    assert last == "at work"
    return [start.split(maxsplit=2) for start in starts]


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "a folder" / "enabled"
    path.parent.mkdir()
    path.write_text("always [madvise] never\n")
    return path


@pytest.mark.parametrize("tunables", [None, "glibc.malloc.check=0"])
def test_the_same_command_starts_again_in_the_same_process(pages, tunables):
    one, two = _start(pages, "--b=c d", tunables=tunables)
    assert one[0] == two[0] and one[2] == two[2] == str([str(pages), "--b=c d"])
    assert one[1] == str(tunables)
    assert two[1] == (f"{tunables}:{ASKED_FOR}" if tunables else ASKED_FOR)


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", None])
def test_it_goes_on_where_pages_are_not_on_demand(pages, mode):
    if mode is None:
        pages.unlink()
    else:
        pages.write_text(mode)
    assert len(_start(pages)) == 1


@pytest.mark.parametrize("value", ["0", "1"])
def test_it_goes_on_where_the_variable_says_which(pages, value):
    ((_, tunables, _),) = _start(pages, tunables=f"glibc.malloc.hugetlb={value}")
    assert tunables == f"glibc.malloc.hugetlb={value}"


@pytest.mark.parametrize("means", ["settrace", "monitoring"])
def test_a_debugger_keeps_its_process(pages, means):
    if not hasattr(sys, means):
        pytest.skip("Python 3.11 has no sys.monitoring")
    assert len(_start(pages, means)) == 1


def test_what_runs_the_script_goes_on(pages):
    """A notebook, for instance, would lose what it has."""
    code = "import runpy, sys; sys.argv = sys.argv[1:-1]; runpy.run_path(sys.argv[0])"
    assert len(_start(pages, "of the notebook", runner=("-c", code))) == 1
