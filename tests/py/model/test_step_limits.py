"""How large steps may be: what is given holds, and the rest follows from device and model."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from dlcore.config import ConfigError, EngineConfig
from dlcore.llm import LLM
from dlcore.step_limits import max_num_batched_tokens, mixed_step_tokens

BILLION = 10**9


def config(**options: object) -> EngineConfig:
    return EngineConfig(model="m", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [0, 1, 100_000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_given_number_holds_as_it_is(given: int, device: str) -> None:
    assert mixed_step_tokens(config(mixed_step_tokens=given), device, 8 * BILLION) == given


def test_steps_of_larger_models_are_filled_with_fewer_tokens_within_bounds() -> None:
    sizes = [BILLION // 2, BILLION, 2 * BILLION, 4 * BILLION, 8 * BILLION, 70 * BILLION]
    tokens = [mixed_step_tokens(config(), "cuda", n) for n in sizes]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] == 2048
    assert tokens[-1] == 768
    assert len(set(tokens)) > 2
    assert all(n % 256 == 0 for n in tokens)


@pytest.mark.parametrize("bound", [0, 300])
def test_a_bound_on_prompt_tokens_takes_the_place_of_the_default(bound: int) -> None:
    bounded = config(max_prefill_tokens_beside_decodes=bound)
    assert mixed_step_tokens(bounded, "cuda", 8 * BILLION) == 0


def test_a_cpu_fills_steps_without_limit() -> None:
    assert mixed_step_tokens(config(), "cpu", BILLION) == 0


def test_a_prompt_that_may_not_be_cut_fits_one_step() -> None:
    uncut = config(enable_chunked_prefill=False)
    assert max_num_batched_tokens(uncut, "cpu", 100_000) == 100_000
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens.*enable_chunked_prefill=True"):
        max_num_batched_tokens(
            config(enable_chunked_prefill=False, max_num_batched_tokens=10), "cpu", 100
        )


@pytest.mark.parametrize(("given", "expected"), [(None, False), (True, True), (False, False)])
def test_lists_do_not_wait_for_their_last_answer_unless_told(
    given: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[EngineConfig] = []
    monkeypatch.setattr("dlcore.llm.open_session", lambda chosen: opened.append(chosen) or Mock())
    LLM("m", hold_back_last_answers=given)
    LLM.from_config(config(hold_back_last_answers=given))
    assert [chosen.hold_back_last_answers for chosen in opened] == [expected, expected]
