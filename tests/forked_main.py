"""Runs main.py in forks of a process that has loaded its libraries: a command begins at once."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LOADED = ("jax", "wsss_jax.jobs.doctor", "wsss_jax.jobs.masks", "wsss_jax.jobs.train")


class Forks:
    """A process that waits for commands."""

    def __init__(self, folder: Path):
        self._output = folder / "stdout", folder / "stderr"
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from tests import forked_main; forked_main.serve()"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Runs `python main.py` with these arguments."""
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps([arguments, *map(str, self._output)]), file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        out, err = (path.read_text() for path in self._output)
        return subprocess.CompletedProcess(arguments, status, out, err)

    def close(self) -> None:
        self._server.communicate()


def serve() -> None:
    """Answers each line of the input, a command, with the status of its process."""
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, *output = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_run(arguments, *output))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(arguments: list[str], *output: str) -> int:
    """Runs main.py as Python does, with its output in two files; returns the exit status."""
    for number, path in enumerate((os.devnull, *output)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.argv = ["main.py", *arguments]
    status: object = 0
    try:
        runpy.run_path("main.py", run_name="__main__")
    except SystemExit as stopped:
        status = stopped.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1
