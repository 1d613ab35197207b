from __future__ import annotations

import pytest
import text_models
from fake_core import ERROR, FakeEngine, FakeRequest, Row, make_session

from dlcore.engine_client import EngineDeadError
from dlcore.llm import LLM
from dlcore.outputs import RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.tokenizer import Tokenizer

TOKENIZER = Tokenizer(text_models.byte_level(), eos_token_ids=(2,))
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, seed=0)


def make_llm(engine: FakeEngine | None = None, tokenizer: Tokenizer | None = TOKENIZER) -> LLM:
    return LLM(session=make_session(engine or FakeEngine(), tokenizer))


def says(text: str, eos: int | None = 2) -> FakeEngine:
    """An engine that answers everything with `text`."""
    ids = TOKENIZER.encode(text, add_special_tokens=False) + ([] if eos is None else [eos] * 99)

    def next_token(request: FakeRequest) -> int:
        return ids[len(request.tokens)]

    return FakeEngine(next_token)


def text_of(output: RequestOutput) -> str:
    return output.outputs[0].text


def test_outputs_come_in_the_order_of_the_prompts() -> None:
    prompts = [{"prompt_token_ids": [i]} for i in range(20)]
    params = [SamplingParams(max_tokens=1 + i % 5, seed=0) for i in range(20)]
    outputs = make_llm().generate(prompts, params)
    assert [o.prompt_token_ids for o in outputs] == [[i] for i in range(20)]
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1 + i % 5 for i in range(20)]
    assert all(o.finished and o.outputs[0].finish_reason == "length" for o in outputs)


def test_the_longest_answers_go_first_and_equal_ones_in_the_order_of_the_prompts() -> None:
    engine = FakeEngine()
    most = [3, 8, None, 3, 8, 1, None]
    params = [SamplingParams(max_tokens=n, seed=0) for n in most]
    llm = make_llm(engine)
    for _ in range(2):  # ids go on
        engine.submitted.clear()
        outputs = llm.generate([{"prompt_token_ids": [i]} for i in range(7)], params)
        assert [r.prompt for r in engine.submitted] == [[2], [6], [1], [4], [0], [3], [5]]
        assert [o.prompt_token_ids for o in outputs] == [[i] for i in range(7)]
    assert [o.request_id for o in outputs] == [str(i) for i in range(7, 14)]


def test_the_text_is_the_decode_of_the_tokens() -> None:
    text = "naïve 🙂 façade"
    count = len(TOKENIZER.encode(text))
    output = make_llm(says(text)).generate("x", SamplingParams(max_tokens=count))[0]
    assert text_of(output) == text == TOKENIZER.decode(output.outputs[0].token_ids)


def test_a_prompt_is_text_or_a_dict_and_one_or_many() -> None:
    llm = make_llm()
    ids = TOKENIZER.encode("The cat")
    as_text, as_dict, as_ids = llm.generate(
        ["The cat", {"prompt": "The cat"}, {"prompt_token_ids": ids}], GREEDY
    )
    assert as_text.outputs == as_dict.outputs == as_ids.outputs
    assert (as_text.prompt, as_ids.prompt) == ("The cat", None)
    assert llm.generate("The cat", GREEDY)[0].outputs == as_text.outputs


@pytest.mark.parametrize("piece", [" ", "red house", "house at", "night"])
def test_a_stop_string_cuts_the_text_and_ends_the_sequence(piece: str) -> None:
    text = "The cat sees a red house at night"
    engine = says(text)
    output = make_llm(engine).generate("x", SamplingParams(stop=piece, max_tokens=40))[0]
    completion = output.outputs[0]
    assert completion.text == text[: text.index(piece)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", piece)
    assert TOKENIZER.decode(completion.token_ids[:-1]).find(piece) < 0
    assert engine.aborted == [1]


def test_include_stop_str_in_output_keeps_it() -> None:
    params = SamplingParams(stop=["red"], include_stop_str_in_output=True, max_tokens=40)
    assert text_of(make_llm(says("a red house")).generate("x", params)[0]) == "a red"


def test_stop_strings_wait_for_min_tokens() -> None:
    ids = TOKENIZER.encode("aXbXc", add_special_tokens=False)
    params = SamplingParams(stop="X", min_tokens=2, max_tokens=len(ids))
    assert text_of(make_llm(says("aXbXc")).generate("x", params)[0]) == "aXb"


def test_the_end_token_is_not_text_and_has_no_stop_reason() -> None:
    params = SamplingParams(max_tokens=40, stop_token_ids=[2], skip_special_tokens=False)
    completion = make_llm(says("a cat")).generate("x", params)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == ("a cat", "stop")
    assert completion.stop_reason is None
    assert completion.token_ids[-1] == 2


def test_a_stop_token_id_is_the_stop_reason() -> None:
    last = TOKENIZER.encode("a", add_special_tokens=False)[0]
    completion = (
        make_llm(says("bcda"))
        .generate("x", SamplingParams(max_tokens=40, stop_token_ids=[last]))[0]
        .outputs[0]
    )
    assert (completion.text, completion.stop_reason) == ("bcd", last)


def test_n_completions_use_seeds_in_a_row_and_share_the_prompt() -> None:
    engine = FakeEngine()
    prompt = {"prompt_token_ids": list(range(20))}
    output = make_llm(engine).generate(prompt, SamplingParams(n=3, seed=7, max_tokens=4))[0]
    assert [c.index for c in output.outputs] == [0, 1, 2]
    assert [r.params.seed for r in engine.submitted] == [7, 8, 9]
    assert [len(c.token_ids) for c in output.outputs] == [4, 4, 4]
    alone = [
        make_llm().generate(prompt, SamplingParams(seed=7 + i, max_tokens=4))[0] for i in range(3)
    ]
    assert [c.token_ids for c in output.outputs] == [o.outputs[0].token_ids for o in alone]


def test_without_a_seed_every_request_draws_its_own() -> None:
    engine = FakeEngine()
    make_llm(engine).generate(["a", "a"], SamplingParams(max_tokens=1))
    first, second = engine.submitted
    assert first.params.seed != second.params.seed


def test_max_tokens_none_fills_the_model() -> None:
    output = make_llm().generate({"prompt_token_ids": [1] * 10}, SamplingParams(max_tokens=None))
    assert len(output[0].outputs[0].token_ids) == 64 - 10


def test_logprobs_and_prompt_logprobs_follow_their_tokens() -> None:
    engine = FakeEngine(stalled=True)
    llm = make_llm(engine)
    rows = [
        Row(1, [], prompt_logprobs=[(-0.5, 2, [9], [-0.1])]),
        Row(1, [10], logprobs=[(-1.0, 1, [10, 11], [-1.0, -2.0])], prompt_logprobs=[]),
        Row(1, [12], finish=2, logprobs=[(-2.0, 3, [10, 11], [-1.0, -1.5])]),
    ]
    engine.emit(*rows)
    output = llm.generate(
        {"prompt_token_ids": [5, 6]}, SamplingParams(logprobs=2, prompt_logprobs=1, max_tokens=2)
    )[0]
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert {k: v.logprob for k, v in (output.prompt_logprobs[1] or {}).items()} == {
        6: -0.5,
        9: -0.1,
    }
    completion = output.outputs[0]
    assert completion.cumulative_logprob == pytest.approx(-3.0)
    assert completion.logprobs is not None
    assert [list(position) for position in completion.logprobs] == [[10, 11], [12, 10, 11]]
    assert completion.logprobs[1][12].rank == 3


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ({"prompt_token_ids": []}, SamplingParams(), "prompt"),
        ({"prompt_token_ids": [1] * 64}, SamplingParams(), "prompt"),
        ({"prompt_token_ids": [512]}, SamplingParams(), "prompt"),
        ({"prompt_token_ids": [-1]}, SamplingParams(), "prompt"),
        ({"prompt_token_ids": [1.5]}, SamplingParams(), "prompt"),
        ({"wrong": 1}, SamplingParams(), "prompt"),
        (7, SamplingParams(), "prompt"),
        ("a" * 10_000_000, SamplingParams(), "prompt"),
        ("a", SamplingParams(stop_token_ids=[999]), "stop_token_ids"),
        ("a", SamplingParams(logit_bias={-1: 2.0}), "logit_bias"),
        ("a", SamplingParams(allowed_token_ids=[]), "allowed_token_ids"),
        ("a", [SamplingParams()] * 2, "sampling_params"),
    ],
)
def test_what_cannot_be_served_is_named_before_anything_runs(
    prompt: object, params: SamplingParams, field: str
) -> None:
    engine = FakeEngine()
    with pytest.raises(ParameterError) as caught:
        make_llm(engine).generate(
            ["fine", prompt] if field != "sampling_params" else prompt, params
        )  # type: ignore[list-item, arg-type]
    assert caught.value.param == field
    assert engine.steps == 0
    assert not engine.running


def test_a_model_without_a_tokenizer_serves_token_ids_only() -> None:
    llm = make_llm(tokenizer=None)
    output = llm.generate({"prompt_token_ids": [1, 2]}, GREEDY)[0]
    assert (len(output.outputs[0].token_ids), text_of(output)) == (8, "")
    for prompt, params in (("text", GREEDY), ({"prompt_token_ids": [1]}, SamplingParams(stop="a"))):
        with pytest.raises(ParameterError, match="no tokenizer"):
            llm.generate(prompt, params)
    with pytest.raises(ParameterError, match="no tokenizer"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_chat_renders_the_template_without_adding_special_tokens(tmp_path: object) -> None:
    folder = text_models.write_folder(tmp_path, text_models.byte_level())  # type: ignore[arg-type]
    llm = make_llm(tokenizer=Tokenizer.from_folder(folder))
    messages = [{"role": "user", "content": "Hi"}]
    one, two = llm.chat([messages, messages], GREEDY)
    assert one.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert one.prompt_token_ids[0] == TOKENIZER.token_to_id("<|im_start|>")
    assert llm.chat(messages, GREEDY)[0].outputs == one.outputs == two.outputs


def test_one_failed_request_says_why_and_the_others_finish() -> None:
    engine = FakeEngine(stalled=True)
    engine.emit(Row(1, [], finish=ERROR, error="bad grammar"), Row(2, [5], finish=2))
    failed, fine = make_llm(engine).generate(["a", "b"], GREEDY)
    assert (failed.error, failed.outputs[0].finish_reason) == ("bad grammar", "error")
    assert fine.outputs[0].token_ids == [5]


def test_a_dead_engine_is_an_error_not_a_hang() -> None:
    engine = FakeEngine(stalled=True)
    engine.healthy = False
    with pytest.raises(EngineDeadError):
        make_llm(engine).generate("a", GREEDY)


def test_close_stops_the_core_once_and_for_all() -> None:
    engine = FakeEngine()
    with make_llm(engine) as llm:
        llm.generate("a", GREEDY)
    assert engine.stopped
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate("a", GREEDY)
