"""Laws of the routing policies."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcore.router.backend import Backend, State
from dlcore.router.policies import POLICIES, RoutingRequest, make_policy
from dlcore.router.prefix_index import BLOCK_CHARACTERS, PrefixIndex, block_names


def nodes(count: int) -> list[Backend]:
    return [Backend(f"http://n{i}", state=State.UP) for i in range(count)]


def prompt(text: str, session: str | None = None) -> RoutingRequest:
    return RoutingRequest(len(text), block_names(text), session)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=6), text=st.text(max_size=2000))
def test_every_policy_chooses_a_candidate(name: str, counts: list[int], text: str) -> None:
    backends = nodes(len(counts))
    for backend, running in zip(backends, counts, strict=True):
        backend.running = running
    policy = make_policy(name)
    for _ in range(4):
        request = prompt(text, session="s")
        chosen = policy.choose(backends, request)
        assert chosen in backends
        policy.sent(chosen, request)
        policy.forget(chosen)


def test_an_unknown_policy_names_the_choices() -> None:
    with pytest.raises(ValueError, match="round_robin"):
        make_policy("fastest")


def test_round_robin_is_fair_and_a_newcomer_does_not_take_everything() -> None:
    policy = make_policy("round_robin")
    backends = nodes(3)
    counts = Counter(policy.choose(backends, prompt("x")).url for _ in range(300))
    assert set(counts.values()) == {100}
    newcomer = Backend("http://new", state=State.UP)
    counts = Counter(policy.choose([*backends, newcomer], prompt("x")).url for _ in range(40))
    assert set(counts.values()) == {10}


def test_least_load_takes_the_idle_node() -> None:
    backends = nodes(3)
    backends[0].running, backends[2].running = 4, 2
    assert make_policy("least_load").choose(backends, prompt("x")) is backends[1]


def test_a_session_stays_and_only_the_lost_nodes_sessions_move() -> None:
    policy = make_policy("session_affinity")
    backends = nodes(5)
    homes = {s: policy.choose(backends, prompt("x", s)) for s in map(str, range(200))}
    assert homes == {s: policy.choose(backends, prompt("y", s)) for s in homes}
    rest = backends[1:]
    for session, home in homes.items():
        if home is not backends[0]:
            assert policy.choose(rest, prompt("x", session)) is home


def test_prefix_aware_returns_to_the_node_that_holds_the_prefix() -> None:
    policy = make_policy("prefix_aware")
    backends = nodes(4)
    system = "You are a helpful assistant. " * 200
    first = policy.choose(backends, prompt(system + "a"))
    policy.sent(first, prompt(system + "a"))
    for backend in backends:
        backend.total_requests = 10 if backend is first else 0
    assert policy.choose(backends, prompt(system + "b")) is first
    assert policy.choose(backends, prompt("something else entirely " * 100)) is not first


def test_prefix_aware_leaves_a_node_that_is_too_busy() -> None:
    policy = make_policy("prefix_aware")
    backends = nodes(2)
    system = "s" * 4000
    policy.sent(backends[0], prompt(system))
    backends[0].running = 50
    assert policy.choose(backends, prompt(system)) is backends[1]


def test_a_restarted_node_is_forgotten() -> None:
    policy = make_policy("prefix_aware")
    backends = nodes(2)
    policy.sent(backends[0], prompt("s" * 4000))
    policy.forget(backends[0])
    backends[0].total_requests = 1
    assert policy.choose(backends, prompt("s" * 4000)) is backends[1]


@given(st.text(max_size=3000), st.text(max_size=3000))
def test_blocks_match_exactly_as_far_as_the_texts_do(a: str, b: str) -> None:
    index = PrefixIndex()
    index.add("n", block_names(a))
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    assert index.match("n", block_names(b)) == common // BLOCK_CHARACTERS


def test_salts_do_not_share_blocks() -> None:
    index = PrefixIndex()
    text = "x" * 1000
    index.add("n", block_names(text, "alice"))
    assert index.match("n", block_names(text, "bob")) == 0
    assert index.match("n", block_names(text, "alice")) == 3


def test_the_index_is_bounded_and_keeps_what_was_used_last() -> None:
    index = PrefixIndex(max_blocks_per_node=10)
    for i in range(100):
        index.add("n", block_names(str(i) * 2000))
    assert index.size("n") == 10
    last = block_names("99" * 1000)
    assert index.match("n", last) == len(last)
