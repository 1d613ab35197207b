"""A prefill node lost in the middle of a transfer is a pause in the client's stream, never more."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from router.kv_proxy import kv_proxy, moved_tickets
from router.test_pd import alone
from router.test_router import streamed, text_in, until
from serve.live_server import live_server
from tiny_checkpoints import tiny_checkpoint

from dlcore import AsyncLLM
from dlcore.config import KvTransferConfig
from dlcore.control.child import Child, free_port
from dlcore.control.local_system import answers
from dlcore.router.app import make_app
from dlcore.router.backend import Role
from dlcore.router.config import RouterConfig

KEY = "a-deployment-key-of-many-bytes"
TTL_S = 2.0
PULL_TIMEOUT_S = 3.0

# Where it is lost: the message of the prefill node that is cut in half.
MESSAGES = (("CHALLENGE", 1), ("WELCOME", 1), ("LEASE_INFO", 1), ("READ_REPLY", 1))
LAST = ("READ_REPLY", 2)


class PrefillNode:
    """`dlcore serve --role prefill` as a process that can be killed and frozen."""

    def __init__(self, folder: Path) -> None:
        key_file = folder / "key"
        key_file.write_text(KEY)
        self.port, self.kv_port = free_port(), free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "dlcore", "serve", str(tiny_checkpoint("qwen3").folder)]
        command += ["--role", "prefill", "--kv-key-file", str(key_file), "--transport", "tcp"]
        command += ["--kv-port", str(self.kv_port), "--kv-lease-ttl", str(TTL_S)]
        command += ["--port", str(self.port), "--device", "cpu", "--num-kv-blocks", "512"]
        self.child = Child("prefill", [*command, "--num-threads", "1"], folder / "log")

    def start(self) -> None:
        self.child.start()

    async def is_ready(self) -> None:
        while not await asyncio.to_thread(answers, self.base + "/ready", KEY):
            assert self.child.alive, self.child.last_words()
            await asyncio.sleep(0.05)

    def metric(self, name: str) -> float:
        headers = {"authorization": f"Bearer {KEY}"}
        page = httpx.get(f"{self.base}/metrics", headers=headers, timeout=10).text
        line = next(line for line in page.splitlines() if line.startswith(f"dlcore:{name}{{"))
        return float(line.split()[-1])

    def blocks_are_back(self) -> bool:
        return self.metric("kv_leases") + self.metric("kv_cache_used_blocks") == 0


@pytest.fixture
def prefill(tmp_path: Path) -> Iterator[PrefillNode]:
    node = PrefillNode(tmp_path)
    node.start()
    yield node
    node.child.kill()


@asynccontextmanager
async def router(prefill_url: str, decode_url: str) -> AsyncIterator[httpx.AsyncClient]:
    config = RouterConfig(
        backends=((prefill_url, Role.PREFILL), (decode_url, Role.DECODE)),
        check_interval_s=0.1, check_timeout_s=0.5, backend_api_key=KEY,
    )  # fmt: skip
    app = make_app(config)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://router", timeout=60) as client,
    ):
        pool = app.state.router.pool
        await until(lambda: len(pool.candidates(None, roles=tuple(Role))) == 2)
        await until(lambda: all(backend.resumable for backend in pool))
        yield client


def request() -> dict[str, Any]:
    prompt = max((p.prompt_ids for p in tiny_checkpoint("qwen3").prompts), key=len)
    return {
        "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True,
        "cache_salt": secrets.token_hex(4),
    }  # fmt: skip


async def stream_through(
    prefill: PrefillNode, message: tuple[str, int], fault: Callable[[], bool]
) -> None:
    """One stream whose pull meets `fault` in `message`; then the decode node has all it lent."""
    asked = request()
    (want,) = await alone([asked])
    kv = KvTransferConfig(
        role="decode", key=KEY.encode(), transport="tcp", pull_timeout_s=PULL_TIMEOUT_S
    )
    folder = str(tiny_checkpoint("qwen3").folder)
    engine = AsyncLLM(folder, device="cpu", num_kv_blocks=256, block_size=8, kv_transfer=kv)
    with live_server(engine, api_key=(KEY,)) as decode:
        await prefill.is_ready()
        async with (
            kv_proxy(prefill.kv_port, *message, fault) as proxy,
            moved_tickets(prefill.base, proxy.port, KEY.encode()) as stand_in,
            router(stand_in, decode.base) as client,
        ):
            events = await streamed(client, asked)
            assert proxy.struck
            assert not any("error" in event for event in events)
            assert text_in(events) == want
            stats = engine.stats()
            assert (stats["num_migrations"], stats["num_failed_migrations"]) == (1, 1)
            await until(lambda: engine.stats()["num_referenced_blocks"] == 0)
            stats = engine.stats()
            back = stats["num_free_blocks"] + stats["num_cached_blocks"]
            assert back == stats["num_kv_blocks"]
            assert stats["num_migrating"] == 0


def run(scene: Any) -> None:
    asyncio.run(asyncio.wait_for(scene, 90))


@pytest.mark.parametrize("message", [*MESSAGES[2:], LAST], ids=str)
def test_killed(prefill: PrefillNode, message: tuple[str, int]) -> None:
    def kill() -> bool:
        prefill.child.kill()
        return True

    run(stream_through(prefill, message, kill))
    assert not prefill.child.alive


@pytest.fixture(scope="module")
def lasting_prefill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefillNode]:
    node = PrefillNode(tmp_path_factory.mktemp("prefill"))
    node.start()
    yield node
    node.child.kill()


async def returned(node: PrefillNode, within_s: float) -> None:
    async def wait() -> None:
        while not await asyncio.to_thread(node.blocks_are_back):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(wait(), within_s)


@pytest.mark.parametrize("message", [*MESSAGES, LAST], ids=str)
def test_cut_off(lasting_prefill: PrefillNode, message: tuple[str, int]) -> None:
    async def scene() -> None:
        await stream_through(lasting_prefill, message, lambda: True)
        await returned(lasting_prefill, TTL_S + 1.0)

    run(scene())


@pytest.mark.parametrize("message", [("LEASE_INFO", 1), ("READ_REPLY", 1)], ids=str)
def test_frozen(lasting_prefill: PrefillNode, message: tuple[str, int]) -> None:
    def freeze() -> bool:
        lasting_prefill.child.signal(signal.SIGSTOP)
        return False

    async def scene() -> None:
        try:
            await stream_through(lasting_prefill, message, freeze)
        finally:
            lasting_prefill.child.signal(signal.SIGCONT)
        await returned(lasting_prefill, TTL_S + 1.0)

    run(scene())
