"""The labeling program as a user starts it, for tests in a real browser."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


class Server:
    """The program, as a user starts it; it can be killed and started again at the same port."""

    def __init__(self, root: Path, log: Path, people: Sequence[str], *settings: str):
        self._root, self._log, self._port = root, log, 0
        self._settings = [f"--config.people={tuple(people)!r}", *settings]
        self.start()

    def start(self):
        command = [sys.executable, "main.py", "--config=configs/label.py"]
        command += [f"--config.data.root={self._root}", f"--config.port={self._port}"]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *self._settings], cwd=REPOSITORY, stdout=log, stderr=log
            )
        while "Ctrl-C" not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            threading.Event().wait(0.1)
        found = re.findall(
            r"^ +(\S+) +(http://127\.0\.0\.1:(\d+)/\S+)", self._log.read_text(), re.M
        )
        self.addresses = {name: address for name, address, _ in found}
        self._port = int(found[0][2])

    def kill_and_start(self):
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 75
