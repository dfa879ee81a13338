"""Runs one job: `python main.py --config=configs/luad_phase1.py --workdir=runs/luad_phase1`.

Any field of the configuration can be set: `--config.batch_size=40`.
"""

import errno
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from wsss_jax import config as config_lib
from wsss_jax.errors import InputError, Preempted

_CONFIG = config_flags.DEFINE_config_file("config", help_string="What to run: a file of configs/.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "Several hosts: host:port of the first, or auto; not needed under SLURM and Open MPI.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Several hosts: how many.")
_PROCESS = flags.DEFINE_integer("process", None, "Several hosts: which of them this is, from 0.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/<config's name>.")

EXIT_INPUT_ERROR = 2
EXIT_PREEMPTED = 75  # "temporary failure" of sysexits.h: try again


def _refuse(message: str) -> NoReturn:
    """Says in one line what the user can mend, and stops."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(EXIT_INPUT_ERROR)


def _config_path(argv: list[str]) -> Path:
    """The file that `--config` names, without the arguments after its colon."""
    following = dict(zip(argv, [*argv[1:], ""]))
    for word in argv:
        flag, equals, value = word.partition("=")
        if flag.lstrip("-") == "config":
            path = Path((value if equals else following[word]).partition(":")[0])
            if not path.is_file():
                raise InputError(f"--config: there is no file {path}; look into configs/")
            return path
    raise InputError("no --config: name a file, such as --config=configs/demo.py")


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a bad one is a one-line error instead of the whole usage."""
    try:
        if not {"--help", "--helpfull", "-help"} & set(argv):
            _config_path(argv)
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise InputError(f"{rest[1]!r} is no flag: write --config.<field>=<value>")
    except (AttributeError, KeyError) as error:  # ConfigDict on a field that it does not have
        text = str(error)
        near = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean {near[1]}?" if near else ""
        _refuse(f"--config has no field {re.search(r'[A-Za-z_]+', text)[0]}{hint}")
    except (SyntaxError, ImportError) as error:
        _refuse(f"--config: {type(error).__name__} in {_config_path(argv)}: {error}")
    except (flags.Error, ValueError, TypeError) as error:
        # What a configuration file raises arrives as the text of a traceback.
        text = str(error).strip()
        _refuse(text.splitlines()[-1] if "Traceback" in text else text)
    return rest


def main(_: list[str]) -> None:
    workdir = Path(_WORKDIR.value or Path("runs") / _config_path(sys.argv).stem)
    try:
        config_lib.validate(_CONFIG.value)
        # Read when JAX loads. XLA's log would call it an error that a program it kept for this very
        # processor was tuned for it (jax issue 38445); what fails is raised, too.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from wsss_jax import parallel  # after the check: loading JAX takes seconds

        parallel.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        parallel.keep_compiled_programs()
        if not parallel.is_first():  # one says what there is to say; errors come from all
            os.environ["TQDM_DISABLE"] = "1"
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        from wsss_jax import jobs

        jobs.run(_CONFIG.value, workdir)
    except InputError as error:
        _refuse(str(error))
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_PREEMPTED)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _refuse(f"{workdir}: {error.strerror}: free some or name another --workdir")
        if error.filename is None:  # not about a file, so not for the user to mend
            raise
        _refuse(f"{error.filename}: {error.strerror}: mend it or name another folder")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO
    app.run(main, flags_parser=_parse)
