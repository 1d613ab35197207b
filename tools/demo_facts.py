"""What the bundled demo model knows: a table of subjects and their answers.

Each answer is one fixed sentence or two, so that evaluation can ask for the exact text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """A thing users ask about. `names` are its spellings, most usual first."""

    names: tuple[str, ...]
    kind: str  # "thing" | "command" | "flag" | "task" | "question"
    answer: str
    default: str = ""  # flags: the sentence about the default value


DLCORE = (
    Subject(
        ("dlcore", "this project", "this engine", "the dlcore engine", "this software"),
        "thing",
        "dlcore is an inference engine for large language models: a C++ runtime with thin Python "
        "bindings that serves models over HTTP and gRPC.",
    ),
    Subject(
        ("the C++ runtime", "the dlcore runtime", "the engine loop"),
        "thing",
        "The C++ runtime owns the loop: one thread per GPU takes requests, plans a step, launches "
        "one captured CUDA graph and hands out the tokens of the step before.",
    ),
    Subject(
        ("the bundled model", "the demo model", "the default model", "the embedded model"),
        "thing",
        "The bundled model is a small Qwen3 model of about 5 million parameters that the project "
        "trained itself; every command uses it when you name no model.",
    ),
)

COMMANDS = (
    Subject(
        ("dlcore serve", "the serve command", "serve"),
        "command",
        "dlcore serve starts an OpenAI-compatible HTTP server for a model, on "
        "http://127.0.0.1:8000 unless you choose another host or port.",
    ),
    Subject(
        ("dlcore chat", "the chat command"),
        "command",
        "dlcore chat opens a chat with a model in your terminal and streams the answers.",
    ),
    Subject(
        ("dlcore generate", "the generate command", "generate"),
        "command",
        "dlcore generate runs a file of prompts offline and writes the answers as JSON lines, "
        "with a progress bar.",
    ),
    Subject(
        ("dlcore bench", "the bench command", "bench"),
        "command",
        "dlcore bench measures latency and throughput, offline or against a URL, and prints a "
        "table, JSON and plots.",
    ),
    Subject(
        ("dlcore doctor", "the doctor command", "doctor"),
        "command",
        "dlcore doctor checks what this machine can run and says why when something cannot run.",
    ),
    Subject(
        ("dlcore router", "the router command", "the router"),
        "command",
        "dlcore router spreads requests over several dlcore nodes and pairs prefill nodes with "
        "decode nodes.",
    ),
    Subject(
        ("dlcore top", "the top command"),
        "command",
        "dlcore top shows a live view of a running server in your terminal.",
    ),
)

FLAGS = (
    Subject(
        ("--port", "the port flag", "the port option"),
        "flag",
        "--port sets the port that dlcore serve listens on.",
        "The default port is 8000.",
    ),
    Subject(
        ("--host", "the host flag", "the host option"),
        "flag",
        "--host sets the address that dlcore serve listens on.",
        "The default host is 127.0.0.1, so only this machine can connect.",
    ),
    Subject(
        ("--max-model-len", "max_model_len", "max model len"),
        "flag",
        "--max-model-len limits how many tokens a prompt and its answer may have together.",
        "By default --max-model-len is the length the model was made for.",
    ),
    Subject(
        ("--served-model-name", "served_model_name", "served model name"),
        "flag",
        "--served-model-name sets the model name that clients see and send in their requests.",
        "By default --served-model-name is the name or path of the model.",
    ),
    Subject(
        ("--gpu-memory-utilization", "gpu_memory_utilization", "gpu memory utilization"),
        "flag",
        "--gpu-memory-utilization says what share of the GPU's memory dlcore may use for weights "
        "and KV cache.",
    ),
    Subject(
        ("--api-key", "api_key", "the api key flag"),
        "flag",
        "--api-key makes the server ask every client for this key, on every route but liveness.",
        "By default there is no API key, and the server listens on loopback only.",
    ),
    Subject(
        ("--dtype", "dtype", "the dtype flag"),
        "flag",
        "--dtype sets the number format of the weights: bfloat16, float16 or float32.",
        "By default --dtype is auto: the format of the model's files.",
    ),
    Subject(
        ("--device", "the device flag"),
        "flag",
        "--device chooses where the model runs: cpu or cuda.",
        "By default --device is auto: the GPU when there is one, else the CPU.",
    ),
    Subject(
        ("--block-size", "block_size", "block size"),
        "flag",
        "--block-size sets how many tokens one KV block holds.",
        "The default block size is 16 tokens.",
    ),
    Subject(
        ("--max-num-seqs", "max_num_seqs", "max num seqs"),
        "flag",
        "--max-num-seqs limits how many sequences run at the same time.",
    ),
    Subject(
        ("--max-num-batched-tokens", "max_num_batched_tokens", "max num batched tokens"),
        "flag",
        "--max-num-batched-tokens limits how many tokens one step may process.",
    ),
    Subject(
        ("--num-kv-blocks", "num_kv_blocks", "num kv blocks"),
        "flag",
        "--num-kv-blocks sets how many KV blocks the cache has, instead of sizing it by memory.",
    ),
    Subject(
        ("--enable-prefix-caching", "enable_prefix_caching", "enable prefix caching"),
        "flag",
        "--enable-prefix-caching lets requests with the same beginning share the KV cache of it.",
        "Prefix caching is on by default.",
    ),
    Subject(
        ("--load-format", "load_format", "load format"),
        "flag",
        "--load-format says how weights are loaded; dummy makes random weights for benchmarks.",
        "By default --load-format is auto: safetensors files.",
    ),
)

PARAMETERS = (
    Subject(
        ("temperature", "the temperature parameter", "sampling temperature"),
        "flag",
        "Temperature sets how random the answer is: 0 always takes the most likely token.",
        "The default temperature is 1.0.",
    ),
    Subject(
        ("top_p", "top-p", "the top_p parameter"),
        "flag",
        "top_p keeps only the most likely tokens whose probabilities add up to p.",
        "The default of top_p is 1.0, which turns it off.",
    ),
    Subject(
        ("top_k", "top-k", "the top_k parameter"),
        "flag",
        "top_k keeps only the k most likely tokens.",
        "The default of top_k is 0, which turns it off.",
    ),
    Subject(
        ("min_p", "min-p", "the min_p parameter"),
        "flag",
        "min_p drops tokens that are much less likely than the most likely one.",
        "The default of min_p is 0, which turns it off.",
    ),
    Subject(
        ("max_tokens", "max tokens", "the max_tokens parameter"),
        "flag",
        "max_tokens limits how many tokens the answer may have.",
        "For SamplingParams the default of max_tokens is 16.",
    ),
    Subject(
        ("the seed", "seed", "the seed parameter"),
        "flag",
        "A seed makes sampling repeatable: the same request gives the same text, whatever else is "
        "in the batch.",
        "By default there is no seed, so each answer is drawn anew.",
    ),
    Subject(
        ("stop strings", "the stop parameter", "stop sequences"),
        "flag",
        "Stop strings end the answer as soon as one of them appears.",
        "By default there are no stop strings.",
    ),
    Subject(
        ("logprobs", "the logprobs parameter"),
        "flag",
        "logprobs asks for the log probability of each token and of its best alternatives.",
        "By default no logprobs are returned.",
    ),
)

CONCEPTS = (
    Subject(
        ("prefill", "the prefill phase", "prefilling"),
        "thing",
        "Prefill is the phase that reads the whole prompt at once and fills the KV cache.",
    ),
    Subject(
        ("decode", "the decode phase", "decoding"),
        "thing",
        "Decode is the phase that makes the answer, one token per sequence and step.",
    ),
    Subject(
        ("prefix caching", "the prefix cache", "a prefix hit"),
        "thing",
        "Prefix caching keeps the KV blocks of earlier prompts, so a new prompt with the same "
        "beginning skips that part of prefill.",
    ),
    Subject(
        ("a KV block", "KV blocks", "the KV block"),
        "thing",
        "A KV block is a fixed piece of cache memory that holds the keys and values of a few "
        "tokens, 16 by default.",
    ),
    Subject(
        ("the KV cache", "a KV cache", "KV caching"),
        "thing",
        "The KV cache stores the attention keys and values of past tokens, so they are computed "
        "only once.",
    ),
    Subject(
        ("continuous batching", "in-flight batching"),
        "thing",
        "Continuous batching lets requests join and leave the running batch at every step.",
    ),
    Subject(
        ("chunked prefill", "a prefill chunk"),
        "thing",
        "Chunked prefill splits a long prompt into pieces, so that decoding requests keep their "
        "pace.",
    ),
    Subject(
        ("preemption", "a preempted request", "preempting"),
        "thing",
        "Preemption pauses the youngest request of lowest priority when blocks run out; it is "
        "recomputed later and never lost.",
    ),
    Subject(
        ("a token", "tokens", "tokenization"),
        "thing",
        "A token is a piece of text, often part of a word; models read and write tokens.",
    ),
    Subject(
        ("the radix tree", "a radix tree"),
        "thing",
        "The radix tree finds the longest cached prefix of a new prompt.",
    ),
    Subject(
        ("the scheduler", "dlcore's scheduler"),
        "thing",
        "The scheduler decides which tokens of which requests run in the next step.",
    ),
    Subject(
        ("a CUDA graph", "CUDA graphs"),
        "thing",
        "A CUDA graph is a recorded list of GPU work that is launched with one call; dlcore runs "
        "every step that way.",
    ),
    Subject(
        ("streaming", "a streamed answer", "token streaming"),
        "thing",
        "Streaming sends the answer piece by piece while it is being made.",
    ),
    Subject(
        ("disaggregation", "PD disaggregation", "prefill-decode disaggregation"),
        "thing",
        "Disaggregation runs prefill and decode on different nodes and moves the KV cache between "
        "them.",
    ),
    Subject(
        ("a cache salt", "cache_salt", "the cache salt"),
        "thing",
        "A cache salt separates users: prefix hits happen only between requests with the same "
        "salt.",
    ),
    Subject(
        ("structured output", "structured outputs", "guided decoding"),
        "thing",
        "Structured output forces the answer to follow a JSON schema, a regex, a grammar or a list "
        "of choices.",
    ),
    Subject(
        ("TTFT", "time to first token"),
        "thing",
        "TTFT is the time from sending a request to its first token.",
    ),
    Subject(
        ("TPOT", "time per output token"),
        "thing",
        "TPOT is the average time between the tokens of an answer.",
    ),
    Subject(
        ("tool calling", "function calling", "tool calls"),
        "thing",
        "Tool calling lets the model ask your program to run a function and then use its result.",
    ),
    Subject(
        ("sampling", "token sampling"),
        "thing",
        "Sampling picks the next token from the model's probabilities.",
    ),
)
