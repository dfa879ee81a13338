"""Runs one job: `python main.py --config=configs/luad_phase1.py --workdir=runs/luad_phase1`.

Any field of the configuration can be set: `--config.batch_size=40`.
"""

from wsss_jax import large_pages, signals

if __name__ == "__main__":
    large_pages.restart_with()
    signals.handle()  # before the imports, which take a while
elif __name__ == "__mp_main__":  # a worker process, which imports this first
    from wsss_jax import workers

    workers.initialize()

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Coroutine
from logging import getLogger
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from wsss_jax import config as config_lib
from wsss_jax import jobs
from wsss_jax.errors import InputError, Preempted, describe_shortage

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to run: a file of configs/.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Several hosts: host:port of the first, or auto; not needed under SLURM and Open MPI.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Several hosts: how many.")
_PROCESS = flags.DEFINE_integer("process", None, "Several hosts: which of them this is, from 0.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config's name>.")
_ROUND = re.compile(r"(?:^|,)round=0*([1-9]\d*)(?:,|$)")  # an argument of a configuration

EXIT_INPUT_ERROR = 2
_EXIT_UNREAD = 128 + signal.SIGPIPE  # what shells say of a process that SIGPIPE ended
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_BAD_DISK = (errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)  # what writing raises


def _refuse(message: str) -> NoReturn:
    """Says in one line what the user can correct, and stops.

    What a terminal would take for a command, in the name of a file or tensor, is written out.
    """
    signals.check()
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(message.split()))
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(EXIT_INPUT_ERROR)


def _config_path(argv: list[str]) -> Path:
    """The file that `--config` names, without the arguments after its colon."""
    return _split_config(argv)[0]


def _split_config(argv: list[str]) -> tuple[Path, str]:
    """The file that `--config` names, and the arguments after its colon."""
    following = dict(zip(argv, [*argv[1:], ""]))
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag.lstrip("-") == "config":
            name, _, arguments = (value if equals else following[word]).partition(":")
            if not Path(name).is_file():
                raise InputError(f"--config: there is no file {name}; look into configs/")
            return Path(name), arguments
    raise InputError("no --config: name a file, such as --config=configs/demo.py")


def _name_workdir(argv: list[str]) -> Path:
    """The workdir where none is given: of a round after round 0, its number is in the name."""
    path, arguments = _split_config(argv)
    later = _ROUND.search(arguments)
    return Path("runs") / (f"{path.stem}_round{later[1]}" if later else path.stem)


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a bad one is a one-line error instead of the whole usage."""
    try:
        if not {"--help", "--helpfull", "-help"} & set(argv):
            _config_path(argv)
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise InputError(f"{rest[1]!r} is not a flag: write --config.<field>=<value>")
    except (AttributeError, KeyError) as error:  # ConfigDict on a field that it does not have
        text = str(error)
        near = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {near[1]}?" if near else ""
        field = re.search(r"[A-Za-z_]+", text)
        _refuse(f"--config has no field {field[0] if field else text}{hint}")
    except (SyntaxError, ImportError) as error:
        _refuse(f"--config: {type(error).__name__} in {_config_path(argv)}: {error}")
    except (flags.Error, ValueError, TypeError) as error:
        # What a configuration file raises arrives as the text of a traceback.
        text = str(error).strip()
        _refuse(text.splitlines()[-1] if "Traceback" in text else text)
    return rest


def main(_: list[str]) -> None:
    workdir = Path(_WORKDIR.value or _name_workdir(sys.argv))
    try:
        config_lib.check_home(_WORKDIR.value or "", "--workdir")
        # Read when JAX loads. XLA's log would call it an error that a program it kept for this very
        # processor was tuned for it (jax issue 38445); what fails is raised, too.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with signals.defer():  # an error amid the loading of JAX's library aborts the process
            config_lib.validate(_CONFIG.value)  # loads the job
            from wsss_jax import parallel

        parallel.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        parallel.cache_compiled_programs()
        if not parallel.is_first():  # one says what there is to say; errors come from all
            os.environ["TQDM_DISABLE"] = "1"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        jobs.run(_CONFIG.value, workdir)
        sys.stdout.flush()
    except InputError as error:
        _refuse(str(error))
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(signals.EXIT_PREEMPTED)
    except OSError as error:
        signals.check()
        if isinstance(error, BrokenPipeError) and error.filename is None:
            _end_unread()
        if error.errno in _NO_ROOM or (error.errno in _BAD_DISK and error.filename is None):
            folder, field = config_lib.find_folder(_CONFIG.value, workdir)
            remedy = "free some" if error.errno in _NO_ROOM else "check the disk"
            _refuse(f"{folder}: {error.strerror}: {remedy} or name another {field}")
        if error.filename is None:  # not about a file, so not for the user to correct
            raise
        _refuse(f"{error.filename}: {error.strerror}: correct that or name another folder")
    except Exception as error:
        signals.check()
        if shortage := describe_shortage(error):
            _refuse(
                f"{shortage}: lower --config.batch_size, or set --config.rematerialize=True in "
                "training"
            )
        raise


def _end_unread() -> NoReturn:
    """Ends without a word, as nobody reads what is printed (`| head`)."""
    unread = os.open(os.devnull, os.O_WRONLY)  # for what is printed at the exit
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(unread, stream.fileno())
    sys.exit(_EXIT_UNREAD)


def _ignore_echoes() -> None:
    """Drops what Orbax's threads and tasks print, a page for each, of an error that it raises."""
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel("CRITICAL")
    show, show_lost = sys.excepthook, sys.unraisablehook

    def is_echo(error: BaseException | None, source: object) -> bool:
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        return closed or isinstance(source, Coroutine)

    sys.excepthook = lambda *error: None if is_echo(error[1], None) else show(*error)
    sys.unraisablehook = lambda lost: (
        None if is_echo(lost.exc_value, lost.object) else show_lost(lost)
    )


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    _ignore_echoes()
    app.run(main, flags_parser=_parse)
