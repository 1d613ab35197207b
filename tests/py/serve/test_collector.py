"""rare_collections: what it changes while it lasts, and why it may: requests leave no cycles."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from serve.live_server import LiveServer, live_server, wait_until

from dlcore import AsyncLLM
from dlcore.serve.collector import YOUNG, rare_collections

DEFAULTS = (700, 10, 10)
NUM_REQUESTS = 5
SERVER_CODE = ("dlcore", "uvicorn", "starlette")
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
RESPONSE = {"input": "a", "max_output_tokens": 4, "store": False}
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "completion": ("/v1/completions", {"prompt": "a", "max_tokens": 4}),
    "stream": ("/v1/completions", {"prompt": "a", "max_tokens": 4, "stream": True}),
    "prompts": ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 4, "stream": True, "n": 2}),
    "chat": ("/v1/chat/completions", CHAT),
    "chat stream": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "response": ("/v1/responses", RESPONSE),
    "response stream": ("/v1/responses", {**RESPONSE, "stream": True}),
    "message": ("/v1/messages", CHAT),
    "message stream": ("/v1/messages", {**CHAT, "stream": True}),
    "refused": ("/v1/completions", {"prompt": "a", "max_tokens": -1}),
    "refused by the engine": ("/v1/completions", {"prompt": [10**9], "stream": True}),
    "no JSON": ("/v1/completions", None),
    "no such route": ("/v1/nothing", {}),
}


@pytest.fixture(autouse=True)
def _default_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*DEFAULTS)
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="module")
def engine_server() -> Iterator[LiveServer]:
    with live_server(AsyncLLM(load_format="null", device="cpu")) as running:
        yield running


def num_collections() -> int:
    return sum(int(generation["collections"]) for generation in gc.get_stats())


def test_a_steps_worth_of_objects_is_not_walked() -> None:
    with rare_collections():
        before = num_collections()
        for _ in range(10):
            kept = [[i] for i in range(YOUNG - 1000)]
            assert len(kept) == YOUNG - 1000
            del kept
        assert num_collections() == before


def test_what_was_there_before_is_not_walked_and_is_given_back() -> None:
    with rare_collections():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == DEFAULTS


def test_it_ends_with_an_exception_as_without() -> None:
    with pytest.raises(RuntimeError), rare_collections():
        raise RuntimeError
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, DEFAULTS)


def test_cycles_still_go_in_time() -> None:
    class Node:
        other: Node

    def cycle() -> None:
        a, b = Node(), Node()
        a.other, b.other = b, a

    with rare_collections():
        for _ in range(YOUNG):
            cycle()
        left = sum(isinstance(o, Node) for o in gc.get_objects())
    assert left < YOUNG


def ask(client: httpx.Client, path: str, body: dict[str, Any] | None) -> None:
    content = {"content": b"{"} if body is None else {"json": body}
    client.post(path, **content)  # type: ignore[arg-type]


@contextmanager
def garbage_of_the_server() -> Iterator[Counter[str]]:
    """Counts, at its end, the objects of the server's code that only the collector would free."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = [f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage]
        found.update(kind for kind in kinds if kind.startswith(SERVER_CODE))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("kind", REQUESTS)
def test_no_request_waits_for_the_collector(engine_server: LiveServer, kind: str) -> None:
    path, body = REQUESTS[kind]
    with httpx.Client(base_url=engine_server.base, timeout=20) as client:
        ask(client, path, body)  # what is made once: caches, the connection
        with garbage_of_the_server() as found:
            for _ in range(NUM_REQUESTS):
                ask(client, path, body)
            assert wait_until(lambda: not engine_server.engine.num_unfinished_requests)
    assert found == {}


def test_nor_does_one_whose_client_leaves(engine_server: LiveServer) -> None:
    body = {"prompt": "a", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    with garbage_of_the_server() as found:
        for _ in range(NUM_REQUESTS):
            with httpx.stream("POST", f"{engine_server.base}/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        assert wait_until(lambda: not engine_server.engine.num_unfinished_requests)
        assert wait_until(lambda: not engine_server.server.server_state.connections)
    assert found == {}
