"""Large pages for the memory of programs on CPUs.

XLA takes the memory of a program, gigabytes in training, from glibc's malloc for each call, and
gives it back. The system hands it out again page by page, filled with zeros: with pages of 4 KiB
that is a sixth of the processor's time in phase 1. Most systems have pages of 2 MiB for programs
that ask for them, and glibc asks if an environment variable says so when it starts.
"""

import os
import sys
from pathlib import Path

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with() -> None:
    """Starts this Python again, with the same command and process number, if that gives it them.

    Call it first. It does nothing where pages are large or small anyway, where the variable says
    already which, in a process that was not started to run this script, such as a notebook's, and
    under a debugger, which would lose the process.
    """
    tunables = os.environ.get(_VARIABLE, "")
    is_script = sys.orig_argv[-len(sys.argv) :] == sys.argv
    if _TUNABLE in tunables or not is_script or _is_debugged() or not _are_on_demand():
        return
    # 1: asks for them with madvise. glibc has it since 2.35; before, it ignores the name.
    os.environ[_VARIABLE] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_debugged() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    uses_it = monitoring is not None and any(map(monitoring.get_tool, range(6)))
    return uses_it or sys.gettrace() is not None


def _are_on_demand() -> bool:
    try:
        return "[madvise]" in _PAGES.read_text()
    except OSError:
        return False
