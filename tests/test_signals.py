"""Small processes that get signals; none of them loads JAX."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wsss_jax import signals

REPOSITORY = Path(__file__).parents[1]
BEGINNING = """
import os, signal, sys, time
from wsss_jax import signals
signals.handle()
def say(text):
    print(text, flush=True)
"""


def _start(script: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BEGINNING + script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(child: subprocess.Popen) -> tuple[int, str, str]:
    out, err = child.communicate(timeout=30)
    return child.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_and_is_reported_in_one_line(number):
    child = _start(
        """
try:
    say("ready")
    while True:
        try:
            time.sleep(60)
        except Exception:
            say("swallowed")
finally:
    os.kill(os.getpid(), signal.SIGTERM)  # once more, while it cleans up
    say("cleaned up")
"""
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    status, out, err = _end(child)
    assert status == 75 and out == "cleaned up\n"
    line = f"stopped by {number.name}; the same command continues, or starts over\n"
    assert err == line


def test_sighup_is_ignored_under_nohup():
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script = """
for _ in range(2):
    os.kill(os.getpid(), signal.SIGHUP)
    with signals.defer() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    assert not received
    signals.restore_handlers()
say("went on")
"""
    finished = subprocess.run(
        [sys.executable, "-c", ignored + BEGINNING + script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "went on\n" and finished.returncode == 0


def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code():
    child = _start(
        """
class Late:
    def __del__(self):  # when modules are cleared, with the handlers of Python gone
        self.kill(self.process, self.number)
late = Late()
late.kill, late.process, late.number = os.kill, os.getpid(), signal.SIGTERM
sys.late = late
"""
    )
    assert _end(child) == (0, "", "")


def test_a_second_sigint_ends_a_process_that_is_busy():
    child = _start(
        """
import threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in a library that computes
threading.Timer(0.5, say, ("ready",)).start()  # when the main thread sleeps
time.sleep(60)
"""
    )
    assert child.stdout.readline() == "ready\n"
    begun = time.monotonic()
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGINT)  # a launcher's, of the same key
    time.sleep(0.4)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert _end(child)[0] == 130 and time.monotonic() - begun < 20


def test_a_signal_in_a_finalizer_is_not_lost():
    child = _start(
        """
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
Last()
say("went on")
time.sleep(60)
"""
    )
    status, out, err = _end(child)
    assert status == 75 and out == "went on\n"
    assert err == "stopped by SIGINT; the same command continues, or starts over\n"


def test_other_threads_defer_nothing():
    handler = signal.getsignal(signal.SIGINT)

    def work():
        with signals.defer() as received:
            return list(received), signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(work).result() == ([], handler)


def test_deferred_work_checks_for_signals_itself():
    child = _start(
        """
with signals.defer() as received:
    say("ready")
    while not received:
        time.sleep(0.01)
    time.sleep(0.3)  # longer than two signals of one key are apart
    say(received[0])
say("not reached")
"""
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    status, out, err = _end(child)
    assert status == 75 and out == "SIGINT\n" and err.startswith("stopped by SIGINT; ")


def test_an_error_of_a_library_after_a_signal_counts_as_the_signal():
    child = _start(
        """
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except BaseException:
    signals.check()
"""
    )
    status, _, err = _end(child)
    assert status == 75 and err.startswith("stopped by SIGTERM; ")
