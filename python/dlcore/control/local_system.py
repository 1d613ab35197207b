"""A router and its nodes on this machine: what `dlcore up` and the chaos test start."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dlcore.config import ConfigError
from dlcore.control.child import Child, free_port, stop_all

STOP_TIMEOUT_S = 10.0
READY_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPlan:
    """`roles`: how many nodes of each role. `node_args` and `router_args` are passed on."""

    roles: tuple[tuple[str, int], ...]
    log_dir: Path
    model: str | None = None
    router_port: int = 8080
    node_args: tuple[str, ...] = ()
    router_args: tuple[str, ...] = ()
    ctrl: bool = False
    scope: str = "local"
    heartbeat_interval_s: float = 2.0


class StartError(RuntimeError):
    """A process did not come up; the message says which, and its last words."""


class LocalSystem:
    """Main thread only. Call `stop` in any case."""

    def __init__(self, plan: LocalPlan) -> None:
        self.plan = plan
        self.services: list[Child] = []
        self._service_ports: list[int] = []
        self._urls: dict[str, str] = {}  # node name -> URL
        ctrl_url = self._add_services() if plan.ctrl else None
        self.nodes = [
            self._node(role, f"{role}-{i}", ctrl_url)
            for role, count in plan.roles
            for i in range(count)
        ]
        self.router = self._router(ctrl_url)
        self.router_url = f"http://127.0.0.1:{plan.router_port}"

    def url_of(self, node: Child) -> str:
        return self._urls[node.name]

    @property
    def children(self) -> list[Child]:
        return [self.router, *self.nodes, *self.services]

    def start(self, timeout_s: float) -> None:
        """Returns when every node and the router are ready. Raises StartError."""
        self.plan.log_dir.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        for service, port in zip(self.services, self._service_ports, strict=True):
            service.start()
            # Each needs the one before it: dlslime-ctrl ends when it finds no Redis.
            self._wait(service, partial(listens, port), deadline)
        for child in (*self.nodes, self.router):
            child.start()
        for node in self.nodes:
            self._wait(node, partial(answers, self.url_of(node) + "/ready"), deadline)
        self._wait(self.router, partial(answers, self.router_url + "/ready"), deadline)

    def restart_dead(self) -> list[Child]:
        """Starts every process that ended again; returns them."""
        dead = [child for child in self.children if not child.alive]
        for child in dead:
            child.kill()  # what it started may still run
            child.start()
        return dead

    def stop(self) -> None:
        """The router first, so that no request comes to a node that is ending."""
        stop_all([self.router], STOP_TIMEOUT_S)
        stop_all(self.nodes, STOP_TIMEOUT_S)
        stop_all(self.services, STOP_TIMEOUT_S)

    def _wait(self, child: Child, is_ready: Callable[[], bool], deadline: float) -> None:
        while not is_ready():
            if not child.alive:
                raise StartError(
                    f"{child.name} ended with exit code {child.exit_code}: {child.last_words()}"
                )
            if time.monotonic() > deadline:
                raise StartError(f"{child.name} is not ready in time; see {child.log}")
            time.sleep(READY_POLL_S)

    def _child(self, name: str, command: list[str]) -> Child:
        return Child(name, command, self.plan.log_dir / f"{name}.log")

    def _dlcore(self, name: str, *args: str) -> Child:
        return self._child(name, [sys.executable, "-m", "dlcore", *args])

    def _node(self, role: str, name: str, ctrl_url: str | None) -> Child:
        port = free_port()
        url = self._urls[name] = f"http://127.0.0.1:{port}"
        model = [self.plan.model] if self.plan.model is not None else []
        member: list[str] = []
        if ctrl_url is not None:
            interval = str(self.plan.heartbeat_interval_s)
            member = ["--ctrl", ctrl_url, "--scope", self.plan.scope, "--advertise-url", url]
            member += ["--heartbeat-interval-s", interval]
        kind = ["--role", role] if role != "hybrid" else []
        args = ["--port", str(port), *member, *kind, *self.plan.node_args]
        return self._dlcore(name, "serve", *model, *args)

    def _router(self, ctrl_url: str | None) -> Child:
        args = ["--port", str(self.plan.router_port), *self.plan.router_args]
        if ctrl_url is not None:
            args += ["--discovery", "ctrl", "--ctrl-url", ctrl_url, "--scope", self.plan.scope]
            args += ["--heartbeat-interval-s", str(self.plan.heartbeat_interval_s)]
        else:
            for node in self.nodes:
                role = node.name.rpartition("-")[0]
                args += ["--backend", f"{self.url_of(node)}={role}"]
        return self._dlcore("router", "router", *args)

    def _add_services(self) -> str:
        """Redis and dlslime-ctrl; returns the latter's URL. Raises ConfigError."""
        redis_port, ctrl_port = free_port(), free_port()
        redis = [needed("redis-server", "the Debian package redis-server")]
        redis += ["--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""]
        ctrl = [needed("dlslime-ctrl", "pip install dlslime-ctrl"), "server"]
        ctrl += ["--host", "127.0.0.1", "--port", str(ctrl_port)]
        ctrl += ["--redis-url", f"redis://127.0.0.1:{redis_port}"]
        self._service_ports = [redis_port, ctrl_port]
        self.services = [self._child("redis", redis), self._child("dlslime-ctrl", ctrl)]
        return f"http://127.0.0.1:{ctrl_port}"


def needed(program: str, how: str) -> str:
    """The program's path: beside this Python, or on PATH. Raises ConfigError."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        raise ConfigError("ctrl", f"{program} is not installed; get it with {how}")
    return found


def listens(port: int) -> bool:
    """True when something accepts connections on this machine's port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def answers(url: str, opener: Callable[..., object] = urllib.request.urlopen) -> bool:
    """True when a GET of `url` gives 200 within two seconds."""
    try:
        with opener(url, timeout=2) as reply:  # type: ignore[attr-defined]
            return bool(reply.status == 200)
    except OSError:
        return False
