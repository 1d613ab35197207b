"""A router and its nodes on this machine: what `dlcore up` and the chaos test start."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    """`roles`: how many nodes of each role. `node_args` and `router_args` are passed on.
    `devices`: what the nodes take turns on ("cuda:0"); empty: each chooses for itself.
    `api_key`: what the environment makes the router and the nodes ask their clients for."""

    roles: tuple[tuple[str, int], ...]
    log_dir: Path
    model: str | None = None
    router_port: int = 8080
    node_args: tuple[str, ...] = ()
    router_args: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    ctrl: bool = False
    api_key: str | None = None
    scope: str = "local"
    heartbeat_interval_s: float = 2.0


class StartError(RuntimeError):
    """A process did not come up; the message says which, and its last words."""


class LocalSystem:
    """Main thread only, but where said. Call `stop` in any case."""

    def __init__(self, plan: LocalPlan) -> None:
        self.plan = plan
        moves_kv = any(role != "hybrid" and count > 0 for role, count in plan.roles)
        # The nodes' alone: the secret under which KV moves, and a key they accept in requests.
        self.node_key = secrets.token_hex(32) if moves_kv or plan.api_key else None
        self._key_file = plan.log_dir / "node-key"
        self.services: list[Child] = []
        self._service_ports: list[int] = []
        self._urls: dict[str, str] = {}  # node name -> URL
        ctrl_url = self._add_services() if plan.ctrl else None
        names = [(role, f"{role}-{i}") for role, count in plan.roles for i in range(count)]
        self.nodes = [self._node(i, role, name, ctrl_url) for i, (role, name) in enumerate(names)]
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
        if self.node_key is not None:
            write_secret(self._key_file, self.node_key)
        deadline = time.monotonic() + timeout_s
        for service, port in zip(self.services, self._service_ports, strict=True):
            service.start()
            # Each needs the one before it: dlslime-ctrl ends when it finds no Redis.
            self._wait(service, partial(listens, port), deadline)
        for child in (*self.nodes, self.router):
            child.start()
        self.wait_ready(deadline - time.monotonic())

    def wait_ready(self, timeout_s: float) -> None:
        """Returns when every node and the router answer. Raises StartError. Any thread."""
        deadline = time.monotonic() + timeout_s
        for node in self.nodes:
            ready = partial(answers, self.url_of(node) + "/ready", self.node_key)
            self._wait(node, ready, deadline)
        ready = partial(answers, self.router_url + "/ready", self.plan.api_key)
        self._wait(self.router, ready, deadline)

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
        if self.node_key is not None:
            self._key_file.unlink(missing_ok=True)

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

    def _node(self, index: int, role: str, name: str, ctrl_url: str | None) -> Child:
        port = free_port()
        url = self._urls[name] = f"http://127.0.0.1:{port}"
        model = [self.plan.model] if self.plan.model is not None else []
        member: list[str] = []
        if ctrl_url is not None:
            interval = str(self.plan.heartbeat_interval_s)
            member = ["--ctrl", ctrl_url, "--scope", self.plan.scope, "--advertise-url", url]
            member += ["--heartbeat-interval-s", interval]
        key_file = str(self._key_file)
        kind = ["--role", role, "--kv-key-file", key_file] if role != "hybrid" else []
        key = ["--api-key-file", key_file] if self.node_key is not None else []
        devices = self.plan.devices
        place = ["--device", devices[index % len(devices)]] if devices else []
        args = ["--port", str(port), *member, *kind, *key, *place, *self.plan.node_args]
        return self._dlcore(name, "serve", *model, *args)

    def _router(self, ctrl_url: str | None) -> Child:
        args = ["--port", str(self.plan.router_port), *self.plan.router_args]
        if self.node_key is not None:
            args += ["--backend-api-key-file", str(self._key_file)]
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


def write_secret(file: Path, secret: str) -> None:
    """A new file that its owner alone can read, in place of one that is there."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(secret + "\n")


def answers(url: str, api_key: str | None = None) -> bool:
    """True when a GET of `url` gives 200 within two seconds."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
