"""dlslime-ctrl and Redis as processes, where they are installed."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import time
from pathlib import Path

from dlcore.control.child import Child, free_port, stop_all

CTRL = Path(sys.executable).parent / "dlslime-ctrl"


def is_installed() -> bool:
    return CTRL.exists() and shutil.which("redis-server") is not None


class RealCtrl:
    def __init__(self, folder: Path) -> None:
        redis_port, port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._ports = (redis_port, port)
        redis = ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""]
        self._redis = Child("redis", redis, folder / "redis.log")
        ctrl = [str(CTRL), "server", "--host", "127.0.0.1", "--port", str(port)]
        ctrl += ["--redis-url", f"redis://127.0.0.1:{redis_port}"]
        self._ctrl = Child("dlslime-ctrl", ctrl, folder / "ctrl.log")

    def start(self) -> None:
        self.start_redis()
        self._ctrl.start()
        _wait_for(self._ports[1])

    def stop(self) -> None:
        stop_all([self._ctrl, self._redis], 5)

    def stop_redis(self) -> None:
        """It keeps nothing on disk: what it knew is lost."""
        self._redis.signal(signal.SIGKILL)
        self._redis.kill()

    def start_redis(self) -> None:
        self._redis.start()
        _wait_for(self._ports[0])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on {port}")
