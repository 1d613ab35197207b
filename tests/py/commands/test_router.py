"""`dlcore router` and `dlcore up` as processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from dlcore.control.child import Child, free_port, stop_all
from dlcore.control.local_system import answers

DLCORE = [sys.executable, "-m", "dlcore"]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        port = str(owner.getsockname()[1])
        command = [*DLCORE, "router", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: port {port} is in use on 127.0.0.1: stop its owner or pass --port"
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--backend", "nowhere"], "--backend"),
        (["--backend", "http://127.0.0.1:1=chief"], "--backend"),
        (["--policy", "random"], "--policy"),
        (["--discovery", "gossip"], "--discovery"),
        (["--max-attempts", "0"], "--max-attempts"),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], named: str) -> None:
    command = [*DLCORE, "router", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {named}: ")
    assert len(done.stderr.splitlines()) == 1


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def states(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/backends", timeout=10) as reply:
        return [backend["state"] for backend in json.load(reply)["backends"]]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_up_serves_restarts_what_dies_and_leaves_nothing_behind(
    tmp_path: Path, end: signal.Signals
) -> None:
    port = free_port()
    options = ["--replicas", "2", "--port", str(port), "--log-dir", str(tmp_path / "logs")]
    node = ["--load-format", "null", "--num-kv-blocks", "64"]
    up = Child("up", [*DLCORE, "up", *options, *node], tmp_path / "up.log")
    up.start()
    try:
        assert wait_until(lambda: "is ready" in up.last_words()), up.last_words()
        first = set(children_of(up.pid))
        assert len(first) == 3
        assert wait_until(lambda: states(port) == ["up", "up"], 10)
        os.kill(max(first), signal.SIGKILL)
        assert wait_until(lambda: len(set(children_of(up.pid)) - first) == 1)
        assert wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"))
        started = first | set(children_of(up.pid))
        up.signal(end)
        assert wait_until(lambda: not up.alive, 40)
        assert wait_until(lambda: all(gone(pid) for pid in started), 20)
    finally:
        stop_all([up], 20)
    if end is signal.SIGINT:
        assert up.exit_code == 0


@pytest.mark.skipif(
    shutil.which("redis-server") is None
    or not (Path(sys.executable).parent / "dlslime-ctrl").exists(),
    reason="needs redis-server and dlslime-ctrl",
)
def test_up_with_ctrl_finds_its_nodes_by_itself(tmp_path: Path) -> None:
    port = free_port()
    options = ["--replicas", "1", "--ctrl", "--port", str(port), "--log-dir", str(tmp_path)]
    node = ["--load-format", "null", "--num-kv-blocks", "64", "--frontends", "2"]
    up = Child("up", [*DLCORE, "up", *options, *node], tmp_path / "up.log")
    up.start()
    try:
        assert wait_until(lambda: "is ready" in up.last_words()), up.last_words()
        assert wait_until(lambda: states(port) == ["up"], 10)
        started = children_of(up.pid)
        assert len(started) == 4  # Redis, dlslime-ctrl, the node, the router
        up.signal(signal.SIGTERM)
        assert wait_until(lambda: not up.alive, 40)
        assert all(gone(pid) for pid in started)
    finally:
        stop_all([up], 20)
    assert up.exit_code == 0
