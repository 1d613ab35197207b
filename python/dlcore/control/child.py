"""One process of a local system: started, watched, stopped, never left behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


def free_port() -> int:
    """A port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """In a session of its own: Ctrl-C reaches the parent alone, which stops in order.

    Start it on the main thread: it dies with the thread that started it.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Raises FileNotFoundError when the program is missing."""
        if shutil.which(self.command[0]) is None:
            raise FileNotFoundError(f"{self.command[0]}: no such program")
        launcher = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        """To the process alone, not to the processes it started."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """At once, with every process it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        with suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:].strip()
        return ""


def stop_all(children: Sequence[Child], timeout_s: float) -> None:
    """Asks all to end; those that have not after `timeout_s` are killed."""
    for child in children:
        if child.alive:
            child.signal(signal.SIGCONT)  # a frozen one hears nothing
            child.signal(signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while any(child.alive for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in children:
        child.kill()  # a group may outlive its leader
