"""dlcore.v1 over real sockets: what is asked arrives, and what the engine says comes back."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import grpc
import pytest
from serve.counting_engine import CountingEngine, serving

from dlcore.client import AsyncClient, Client
from dlcore.engine_client import EngineDeadError, QueueFullError
from dlcore.outputs import Logprob, RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from tools.gen_proto import generate


async def test_stream_of_deltas_joins_to_the_whole_result():
    async with serving(CountingEngine()) as address, AsyncClient(address) as client:
        deltas = [d async for d in client.stream([7, 8], SamplingParams(max_tokens=5))]
        whole = await client.generate([7, 8], SamplingParams(max_tokens=5))
    assert [d.outputs[0].token_ids for d in deltas] == [[0], [1], [2], [3], [4]]
    assert "".join(d.outputs[0].text for d in deltas) == whole.outputs[0].text == "0 1 2 3 4 "
    assert whole.outputs[0].token_ids == [0, 1, 2, 3, 4]
    assert whole.outputs[0].finish_reason == "length"
    assert whole.outputs[0].logprobs[3] == {3: Logprob(-0.5, 1, "3 ")}
    assert whole.finished
    assert whole.num_cached_tokens == 1


async def test_every_sampling_parameter_arrives_as_it_was_sent():
    params = SamplingParams(
        n=2,
        temperature=0.25,
        top_p=0.5,
        top_k=7,
        min_p=0.125,
        seed=-3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        max_tokens=1,
        min_tokens=1,
        stop=["a", "b"],
        stop_token_ids=(5, 6),
        include_stop_str_in_output=True,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=2,
        logit_bias={3: -1.5},
        allowed_token_ids=(1, 2),
        bad_words=("x",),
        skip_special_tokens=False,
        detokenize=False,
        structured_outputs=StructuredOutputs(choice=("yes", "no")),
    )
    engine = CountingEngine()
    async with serving(engine) as address, AsyncClient(address) as client:
        async for _ in client.stream("hi", params, request_id="r1", priority=-2, cache_salt="s"):
            pass
    assert engine.calls == [("hi", params, "grpc--r1", -2, "s")]


async def test_unset_parameters_are_as_the_models_authors_advise():
    engine = CountingEngine()
    engine.defaults = SamplingParams(temperature=0.5, top_k=20)
    async with serving(engine) as address, AsyncClient(address) as client:
        await client.generate("hi")
        await client.generate("hi", SamplingParams(max_tokens=None))
    assert [params for _, params, *_ in engine.calls] == [
        SamplingParams(temperature=0.5, top_k=20, max_tokens=None),
        SamplingParams(max_tokens=None),
    ]


async def test_the_servers_cap_on_output_holds():
    engine = CountingEngine()
    async with serving(engine, max_output_tokens=5) as address, AsyncClient(address) as client:
        assert len((await client.generate("hi")).outputs[0].token_ids) == 5
        with pytest.raises(ParameterError, match="max_tokens: 6 is too large"):
            await client.generate("hi", SamplingParams(max_tokens=6))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ParameterError("top_p", "must be in (0, 1]"), ParameterError),
        (QueueFullError("full"), QueueFullError),
        (EngineDeadError("dead"), EngineDeadError),
    ],
)
async def test_errors_keep_their_type_and_field(error, raised):
    engine = CountingEngine()
    engine.error = error
    async with serving(engine) as address, AsyncClient(address) as client:
        with pytest.raises(raised) as caught:
            await client.generate("hi")
    assert str(caught.value) == str(error)


async def test_a_request_without_prompt_names_the_field():
    async with serving(CountingEngine()) as address, grpc.aio.insecure_channel(address) as channel:
        from_wire = channel.unary_stream("/dlcore.v1.Engine/Generate")
        with pytest.raises(grpc.RpcError) as caught:
            async for _ in from_wire(b""):
                pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("prompt: ")


async def test_abort_stats_and_model_info():
    engine = CountingEngine()
    async with serving(engine) as address, AsyncClient(address) as client:
        await client.abort("a", "b")
        info = await client.model_info()
        stats = await client.stats()
    assert engine.aborted == ["grpc--a", "grpc--b"]
    assert (info.model, info.max_model_len, info.vocab_size) == ("counting", 128, 1000)
    assert not info.has_tokenizer
    assert stats == {"num_running": 0.0}


async def test_the_blocking_client_gives_the_same_result():
    async with serving(CountingEngine()) as address:

        def use() -> tuple[RequestOutput, dict[str, float]]:
            with Client(address) as client:
                return client.generate("hi", SamplingParams(max_tokens=3)), client.stats()

        whole, stats = await asyncio.to_thread(use)
    assert whole.outputs[0].token_ids == [0, 1, 2]
    assert whole.prompt == "hi"
    assert "num_running" in stats


def test_the_generated_modules_match_the_proto():
    committed = Path(__file__).resolve().parents[3] / "python" / "dlcore" / "v1"
    with tempfile.TemporaryDirectory() as folder:
        assert generate(Path(folder)) == 0
        for fresh in (Path(folder) / "dlcore" / "v1").iterdir():
            assert fresh.read_text() == (committed / fresh.name).read_text(), fresh.name
