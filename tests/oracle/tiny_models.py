#!/usr/bin/env python3
"""Writes tiny random checkpoints in real Hugging Face layout, and golden outputs. See README.md.

golden.json, per prompt: name, prompt_ids, completion_ids (32 greedy tokens, EOS ignored), top5 (the
first 8 steps: [[token id, logprob] x 5]) and margins (top1 - top2 logit of every step).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_tokenizer import VOCAB_SIZE, write
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

FAMILIES = ("qwen3", "qwen3_tied")
NUM_NEW_TOKENS = 32
NUM_SCORED_STEPS = 8
MIN_MARGIN = 0.01  # between the two best logits of every greedy step
NOISE = 3e-6  # relative, on every weight, that must flip no choice
MAX_DRAWS = 60


@dataclass(frozen=True)
class Prompt:
    name: str
    ids: list[int]


@dataclass(frozen=True)
class Completion:
    ids: list[int]
    logits: Tensor  # [32, vocab]

    @property
    def margins(self) -> Tensor:
        best = self.logits.topk(2, dim=-1).values
        return best[:, 0] - best[:, 1]


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32("|".join(map(str, key)).encode()))


def config_json(family: str, special: dict[str, int], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": family == "qwen3_tied",
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }


def draw(
    family: str, seed: int, name: str, shape: torch.Size, special: list[int], salt: int = 0
) -> Tensor:
    """A value that depends on the arguments alone, scaled so that every part of the
    model matters to the output and special tokens are practically never the best."""
    tied = family == "qwen3_tied"
    values = torch.randn(shape, generator=generator(family, seed, name, salt))
    if len(shape) == 1:
        base = 1.4 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
        return base + 0.1 * values
    if name.endswith("embed_tokens.weight"):
        values *= 0.5 if tied else 1.0
        if tied:
            values[special] *= 0.1
        return values
    if name.endswith("lm_head.weight"):
        values *= 6.0 / math.sqrt(shape[1])
        values[special] *= 0.05
        return values
    gain = 2.0 if name.endswith("o_proj.weight") else 1.0
    gain = 1.5 if name.endswith("down_proj.weight") else gain
    if tied and gain > 1.0:
        gain *= 3
    return gain * values / math.sqrt(shape[-1])


def make_prompts(tokenizer: Tokenizer, special: list[int], seed: int) -> list[Prompt]:
    plain = torch.tensor(sorted(set(range(VOCAB_SIZE)) - set(special)))

    def random_ids(name: str, count: int) -> list[int]:
        index = torch.randint(0, len(plain), (count,), generator=generator("prompt", name, seed))
        return plain[index].tolist()

    chat = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "What is the weather in Paris?<|im_end|>\n<|im_start|>assistant\n"
    )
    text = "The quick fox measures the tensor before noon; my neighbour reads two numbers."
    prompts = [Prompt(f"random_{n}", random_ids(f"random_{n}", n)) for n in (1, 7, 48, 129, 200)]
    prompts.append(Prompt("long", random_ids("long", 300)))
    prompts += [Prompt(n, tokenizer.encode(t).ids) for n, t in (("text", text), ("chat", chat))]
    return prompts


@torch.no_grad()
def greedy(model: Qwen3ForCausalLM, prompt: Prompt) -> Completion:
    out = model(input_ids=torch.tensor([prompt.ids]), use_cache=True)
    ids: list[int] = []
    rows: list[Tensor] = []
    while True:
        rows.append(out.logits[0, -1].float())
        ids.append(int(rows[-1].argmax()))
        if len(ids) == NUM_NEW_TOKENS:
            return Completion(ids, torch.stack(rows))
        token = torch.tensor([[ids[-1]]])
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)


@torch.no_grad()
def stable_under_noise(
    model: Qwen3ForCausalLM, prompts: list[Prompt], completions: list[Completion], seed: int
) -> bool:
    noisy = copy.deepcopy(model)
    rng = generator("noise", seed)
    for weight in noisy.parameters():
        weight.mul_(1 + NOISE * torch.randn(weight.shape, generator=rng))
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt.ids + completion.ids])
        logits = noisy(input_ids=ids, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
        if logits.argmax(-1).tolist() != completion.ids:
            return False
    return True


def draw_model(
    config: Qwen3Config, family: str, seed: int, special: list[int], dtype: torch.dtype
) -> Qwen3ForCausalLM:
    """A float32 model whose weights are exact in `dtype`."""
    model = Qwen3ForCausalLM._from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(draw(family, seed, name, weight.shape, special).to(dtype))
    return model.eval()


def redraw_head(
    model: Qwen3ForCausalLM, family: str, seed: int, special: list[int], dtype: Any, salt: int
) -> None:
    name = "model.embed_tokens.weight" if family == "qwen3_tied" else "lm_head.weight"
    weight = model.get_parameter(name)
    with torch.no_grad():
        weight.copy_(draw(family, seed, name, weight.shape, special, salt).to(dtype))


def find_clear_model(
    hf: dict[str, Any], family: str, seed: int, special: list[int], prompts: list[Prompt]
) -> tuple[Qwen3ForCausalLM, list[Completion]]:
    """The first draw of the head whose greedy choices are all clear."""
    dtype = getattr(torch, hf["torch_dtype"])
    config = Qwen3Config.from_dict(hf)
    model = draw_model(config, family, seed, special, dtype)
    for salt in range(MAX_DRAWS):
        redraw_head(model, family, seed, special, dtype, salt)
        completions = []
        for prompt in prompts:
            completions.append(greedy(model, prompt))
            if completions[-1].margins.min() < MIN_MARGIN:
                break
        else:
            if stable_under_noise(model, prompts, completions, seed):
                return model, completions
    raise RuntimeError(f"{family}, seed {seed}: no clear draw; try another seed")


def write_weights(model: Qwen3ForCausalLM, folder: Path, dtype: torch.dtype) -> None:
    tied = model.config.tie_word_embeddings
    tensors = {
        name: weight.to(dtype).clone()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    read = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        if not torch.equal(read.state_dict()[name], weight):
            raise RuntimeError(f"transformers reads {name} back differently")


def write_golden(folder: Path, prompts: list[Prompt], completions: list[Completion]) -> None:
    entries = []
    for prompt, completion in zip(prompts, completions, strict=True):
        top = completion.logits[:NUM_SCORED_STEPS].log_softmax(-1).topk(5, dim=-1)
        steps = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        entries.append(
            {
                "name": prompt.name,
                "prompt_ids": prompt.ids,
                "completion_ids": completion.ids,
                "top5": [list(zip(ids, values, strict=True)) for ids, values in steps],
                "margins": completion.margins.tolist(),
            }
        )
    (folder / "golden.json").write_text(json.dumps({"prompts": entries}))


def build(family: str, out: Path, seed: int, dtype: str = "float32") -> Path:
    folder = out / family
    folder.mkdir(parents=True, exist_ok=True)
    ids = write(folder, seed)
    special = sorted(ids.values())
    hf = config_json(family, ids, dtype)
    (folder / "config.json").write_text(json.dumps(hf, indent=2))
    eos = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"eos_token_id": eos, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    prompts = make_prompts(Tokenizer.from_file(str(folder / "tokenizer.json")), special, seed)
    model, completions = find_clear_model(hf, family, seed, special, prompts)
    write_weights(model, folder, getattr(torch, dtype))
    write_golden(folder, prompts, completions)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)  # tiny products: threads would only wait for each other
    for family in [args.only] if args.only else FAMILIES:
        print(build(family, args.out, args.seed, args.dtype))


if __name__ == "__main__":
    main()
