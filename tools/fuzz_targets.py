"""The system whose ports are fuzzed, and what each of them speaks."""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from chaos_watch import NodeMetrics
from fuzz_kv import KvConnection, read_lease
from fuzz_messages import CTRL_BODIES, Grpc, Http, Maker, kv_frame, resp, zmtp
from listeners import Listener, listening, process_tree

from dlcore.control.child import Child, free_port
from dlcore.control.local_system import LocalPlan, LocalSystem
from dlcore.kv_ticket import KvTicket, open_ticket

LANGUAGES = ("http", "grpc", "kv", "intruder", "zmtp", "ctrl", "redis")
LEASE_TTL_S = 10.0
NUM_KV_BLOCKS = 1024
BLOCK_SIZE = 16
LONG_PROMPT = 1900
NEEDLE_BYTES = 48


@dataclass(frozen=True, slots=True)
class Target:
    listener: Listener
    language: str  # of LANGUAGES
    key: str | None = None  # a server's API key; the deployment's for an intruder
    node_url: str = ""  # where an intruder gets its tickets

    @property
    def is_ours(self) -> bool:
        """False for services that others wrote: their 500s are theirs."""
        return self.language not in ("ctrl", "redis")

    @property
    def name(self) -> str:
        return f"{self.listener.name} ({self.language})"

    def maker(self) -> Maker:
        makers: dict[str, Maker] = {
            "http": Http(self.key), "grpc": Grpc(self.key), "kv": kv_frame, "zmtp": zmtp,
            "ctrl": Http(None, CTRL_BODIES), "redis": resp,
        }  # fmt: skip
        return makers[self.language]


def post(url: str, key: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def ask_ticket(node_url: str, key: str, seed: int) -> KvTicket:
    """Of a prompt of some blocks that nobody else sends."""
    rng = random.Random(f"ticket {seed}")
    body = {
        "prompt": [rng.randrange(4, 2000) for _ in range(70)], "max_tokens": 2, "ignore_eos": True,
        "temperature": 0, "kv_transfer_params": {"do_remote_decode": True},
    }  # fmt: skip
    answer = post(node_url + "/v1/completions", key, body)
    return open_ticket(answer["kv_transfer_params"]["ticket"], key.encode())


def plan(folder: Path, ctrl: bool) -> LocalPlan:
    node_args = ["--frontends", "2", "--grpc-port", "0", "--data-dir", str(folder / "data")]
    node_args += ["--num-threads", "1", "--num-kv-blocks", str(NUM_KV_BLOCKS), "--no-access-log"]
    node_args += ["--max-output-tokens", "16", "--kv-lease-ttl", str(LEASE_TTL_S)]
    node_args += ["--kv-pull-timeout", "5", "--device", "cpu", "--log-level", "error"]
    return LocalPlan(
        roles=(("prefill", 1), ("decode", 1)),
        log_dir=folder,
        router_port=free_port(),
        node_args=tuple(node_args),
        router_args=("--log-level", "error"),
        ctrl=ctrl,
    )


class System:
    """Two nodes and their router; with dlslime-ctrl and Redis where the plan says so."""

    def __init__(self, local: LocalSystem) -> None:
        self.local = local
        self.children = [local.router, *local.nodes]
        assert local.node_key is not None
        self.key = local.node_key
        self.prefill, self.decode = local.nodes

    def targets(self) -> list[Target]:
        ticket = ask_ticket(self.local.url_of(self.prefill), self.key, -1)
        found = [target for child in self.children for target in self._of(child, ticket)]
        for service in self.local.services:
            language = "redis" if service.name == "redis" else "ctrl"
            for port in sorted(listening(process_tree(service.pid))[0]):
                found.append(Target(Listener(service.name, "port", port), language))
        return found

    def _of(self, child: Child, ticket: KvTicket) -> Iterator[Target]:
        ports, paths = listening(process_tree(child.pid))
        kv = [end.partition("://")[2] for end in ticket.endpoints] if child is self.prefill else []
        for port in sorted(ports):
            if port == self.local.plan.router_port:
                yield Target(Listener(child.name, "HTTP", port), "http")
            elif child in self.local.nodes and self.local.url_of(child).endswith(f":{port}"):
                yield Target(Listener(child.name, "HTTP", port), "http", self.key)
            elif f"127.0.0.1:{port}" in kv:
                listener = Listener(child.name, "KV tcp", port)
                yield Target(listener, "kv")
                yield Target(listener, "intruder", self.key, self.local.url_of(child))
            else:  # nothing else is asked for
                yield Target(Listener(child.name, "gRPC", port), "grpc", self.key)
        for path in sorted(paths):
            if any(end.endswith(path) for end in kv):
                yield Target(Listener(child.name, "KV shm", path=path), "kv")
            elif Path(path).name.startswith("responses-"):
                yield Target(Listener(child.name, Path(path).name, path=path), "http", self.key)
            else:
                name = f"ZMQ {Path(path).name}"
                yield Target(Listener(child.name, name, path=path), "zmtp")

    def needles(self) -> list[bytes]:
        """Bytes of a prompt's KV that no answer may hold."""
        ticket = ask_ticket(self.local.url_of(self.prefill), self.key, -2)
        lease = (ticket.lease_id, ticket.epoch)
        address = next(end for end in ticket.endpoints if end.startswith("tcp://"))
        listener = Listener("", "", int(address.rpartition(":")[2]))
        connection = KvConnection(listener.connect(5.0), self.key.encode())
        leased = read_lease(connection, lease)
        connection.close()
        held = [blocks[leased.blocks[1]] for blocks in leased.layers[1:]]
        return [data[len(data) // 4 :][:NEEDLE_BYTES] for data in held]

    def touch_all_blocks(self) -> None:
        """So that memory grows by KV that was never written before the fuzzing, not in it."""
        for node in self.local.nodes:
            url = self.local.url_of(node) + "/v1/completions"
            for i in range(NUM_KV_BLOCKS * BLOCK_SIZE // LONG_PROMPT + 1):
                prompt = [i + 4] * LONG_PROMPT
                post(url, self.key, {"prompt": prompt, "max_tokens": 1})

    def processes(self) -> dict[int, str]:
        return {pid: child.name for child in self.children for pid in process_tree(child.pid)}

    def answers(self) -> list[str]:
        """A good client's, by way of the router and both nodes."""
        url = self.local.router_url + "/v1/completions"
        asked = [[i + 5 + 3 * j for j in range(40)] for i in range(8)]
        body = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}
        found = []
        for i, prompt in enumerate(asked):
            salt = os.urandom(4).hex()
            answer = post(url, "", {**body, "prompt": prompt, "cache_salt": f"{i} {salt}"})
            found.append(str(answer["choices"][0]["text"]))
        return found

    async def blocks_not_back(self) -> list[str]:
        async with aiohttp.ClientSession() as session:
            metrics = NodeMetrics(session, self.local)
            _, held = await metrics.seconds_until_returned(LEASE_TTL_S + 5.0)
            return held
