"""The bundled model: its folder, its answers, and the text and tokenizer it was trained on."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from dlcore.llm import LLM
from dlcore.sampling_params import SamplingParams

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "python" / "dlcore" / "assets" / "demo"
sys.path.insert(0, str(ROOT / "tools"))

from demo_corpus import CHAT_TEMPLATE, build_corpus, encode_segments  # noqa: E402
from demo_eval import count_right, held_out_tests  # noqa: E402
from demo_model import DemoConfig, DemoModel  # noqa: E402
from demo_text import (  # noqa: E402
    FACT_EXAMPLES,
    SOCIAL_EXAMPLES,
    conversation,
    system_turn,
    tool_schema,
    tools_prompt,
    user_turn,
)

MEGABYTE = 10**6

CHATS = (
    (("Hello!", "Hello! Ask me about dlcore, or give me a small sum."),),
    (
        ("What is 17 + 25?", "17 + 25 = 42."),
        ("and 999 - 123", "999 - 123 = 876."),
        ("thank you!", "You are welcome!"),
    ),
    (("what does dlcore bench do", "dlcore bench measures latency and throughput, offline or "
      "against a URL, and prints a table, JSON and plots."),),
    (("What's the default port?", "The default port is 8000."),),
    (("6 * 7", "6 * 7 = 42."),),
    (
        ("Which commands are there?", "The commands are serve, chat, generate, bench, doctor, "
         "router and top."),
        ("What is the capital of Portugal?", "I don't know. I am a small demo model: I only know "
         "about dlcore and small arithmetic."),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> DemoModel:
    model = DemoModel(DemoConfig())
    model.load_state_dict(load_file(DEMO / "model.safetensors"))
    return model.float().eval()


@torch.no_grad()
def greedy_answer(model: DemoModel, tokenizer: Tokenizer, prompt: str, stop: int) -> str:
    ids = tokenizer.encode(prompt).ids
    start = len(ids)
    while len(ids) < start + 80:
        token = int(model.head(model(torch.tensor([ids]))[0, -1]).argmax())
        if token == stop:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def test_folder_is_a_small_hugging_face_folder() -> None:
    names = {path.name for path in DEMO.iterdir()}
    assert names >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12 * MEGABYTE
    weights = load_file(DEMO / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert json.loads((DEMO / "config.json").read_text())["model_type"] == "qwen3"


@pytest.mark.parametrize("turns", CHATS, ids=lambda turns: turns[-1][0])
def test_answers_fixed_chats(
    model: DemoModel, tokenizer: Tokenizer, turns: tuple[tuple[str, str], ...]
) -> None:
    stop = tokenizer.token_to_id("<|im_end|>")
    prompt = ""
    for question, answer in turns:
        prompt += user_turn(question)[0]
        assert greedy_answer(model, tokenizer, prompt, stop) == answer
        prompt += f"{answer}<|im_end|>\n"


def test_every_command_s_default_model_answers_the_same_through_the_engine() -> None:
    with LLM(device="cpu", dtype="float32", num_kv_blocks=512) as llm:
        for turns in CHATS:
            messages: list[dict[str, str]] = []
            for question, answer in turns:
                messages.append({"role": "user", "content": question})
                params = SamplingParams(max_tokens=80, temperature=0.0)
                (output,) = llm.chat(messages, params, use_tqdm=False)
                assert output.outputs[0].text == answer
                messages.append({"role": "assistant", "content": answer})


def test_accuracy_on_held_out_text(model: DemoModel, tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for name, examples in held_out_tests().items():
        sample = rng.sample(examples, min(60, len(examples)))
        required = 0.9 if "no template" in name or "3 digits" in name else 0.95
        assert count_right(model, tokenizer, sample) >= required * len(sample), name


@torch.no_grad()
def test_training_module_equals_the_published_architecture(
    model: DemoModel, tokenizer: Tokenizer
) -> None:
    published = Qwen3ForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokens = torch.tensor([tokenizer.encode(user_turn("What is prefill?")[0]).ids])
    torch.testing.assert_close(
        model.head(model(tokens)), published(tokens).logits, rtol=1e-4, atol=1e-4
    )
    assert Qwen3Config.from_pretrained(DEMO).eos_token_id == tokenizer.token_to_id("<|im_end|>")


def test_chat_template_renders_the_training_text(tokenizer: Tokenizer) -> None:
    template = AutoTokenizer.from_pretrained(DEMO)
    assert template.chat_template.strip() == CHAT_TEMPLATE.strip()
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "17 + 25"},
    ]
    names = ["get_weather", "search"]
    for tools, system in (
        (None, "Answer briefly."),
        ([tool_schema(n) for n in names], "Answer briefly.\n\n" + tools_prompt(names)),
    ):
        segments = [
            system_turn(system),
            user_turn("hi"),
            ("Hello!<|im_end|>", True),
            ("\n", False),
            user_turn("17 + 25"),
        ]
        rendered = template.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
        assert rendered == "".join(text for text, _ in segments)
        assert tokenizer.encode(rendered).ids == encode_segments(tokenizer, segments)[0]


def test_corpus_depends_on_the_seed_alone(tokenizer: Tokenizer) -> None:
    def corpus(seed: int, processes: int) -> bytes:
        return build_corpus(
            tokenizer, seed=seed, rows=65, row_tokens=128, processes=processes
        ).tobytes()

    assert corpus(1, 1) == corpus(1, 2)
    assert corpus(1, 1) != corpus(2, 1)


def test_a_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for example in FACT_EXAMPLES + SOCIAL_EXAMPLES:
        assert answers.setdefault(example.question.lower(), example.answer) == example.answer


def test_only_answers_carry_loss(tokenizer: Tokenizer) -> None:
    rng = random.Random(7)
    for _ in range(50):
        segments = conversation(rng)
        ids, learn = encode_segments(tokenizer, segments)
        learned = tokenizer.decode(
            [i for i, wanted in zip(ids, learn, strict=True) if wanted], skip_special_tokens=False
        )
        assert learned == "".join(text for text, wanted in segments if wanted)
