"""What the bundled demo model knows, second part: tasks, whole questions, small talk."""

from __future__ import annotations

from demo_facts import COMMANDS, CONCEPTS, DLCORE, FLAGS, PARAMETERS, Subject

TASKS = (
    Subject(
        (
            "start a server",
            "start the server",
            "serve a model",
            "run the server",
            "launch a server",
        ),
        "task",
        "Run: dlcore serve MODEL. Without MODEL it serves the bundled demo model.",
    ),
    Subject(
        ("change the port", "set the port", "use another port", "listen on another port"),
        "task",
        "Use --port, for example: dlcore serve --port 9000.",
    ),
    Subject(
        ("chat in the terminal", "talk to a model", "chat with a model"),
        "task",
        "Run: dlcore chat.",
    ),
    Subject(
        ("check my machine", "see what my machine can run", "find out why it does not run"),
        "task",
        "Run: dlcore doctor.",
    ),
    Subject(
        ("measure throughput", "benchmark the server", "run a benchmark", "measure latency"),
        "task",
        "Run: dlcore bench.",
    ),
    Subject(
        ("run prompts offline", "process a file of prompts", "generate text from a file"),
        "task",
        "Use dlcore generate with a file of prompts.",
    ),
    Subject(
        ("protect the server with a key", "require an API key", "set an API key"),
        "task",
        "Use --api-key; clients then send the key as a bearer token.",
    ),
    Subject(
        ("stop the server", "shut down the server", "shut the server down"),
        "task",
        "Send SIGTERM or press Ctrl-C: running requests finish first; a second signal aborts them.",
    ),
    Subject(
        ("use dlcore from Python", "use the Python API", "call dlcore in Python"),
        "task",
        "Write: from dlcore import LLM, SamplingParams; then LLM(model).generate(prompts).",
    ),
    Subject(
        ("install dlcore", "set up dlcore", "get dlcore installed"),
        "task",
        "Run: pip install . in the project's folder. It needs no GPU and no CUDA toolkit.",
    ),
    Subject(
        ("load my own model", "use my own model", "use a Hugging Face model"),
        "task",
        "Give the folder of the model: dlcore serve /path/to/model.",
    ),
    Subject(
        ("use the openai client", "connect with the openai client", "use the openai library"),
        "task",
        "Point the openai client at http://127.0.0.1:8000/v1 and use it as usual.",
    ),
    Subject(
        ("see the metrics", "get metrics", "monitor the server"),
        "task",
        "Read /metrics, which is in Prometheus format, or run: dlcore top.",
    ),
    Subject(
        ("get repeatable answers", "make answers deterministic", "get the same answer every time"),
        "task",
        "Set temperature to 0, or set a seed.",
    ),
)

QUESTIONS = (
    Subject(
        (
            "which endpoints are there",
            "what endpoints does dlcore have",
            "list the endpoints",
            "which routes does the server offer",
            "what are the http endpoints",
        ),
        "question",
        "The main endpoints are /v1/chat/completions, /v1/completions, /v1/models, /health and "
        "/metrics.",
    ),
    Subject(
        (
            "which commands are there",
            "what commands does dlcore have",
            "list the commands",
            "show me all commands",
            "what can i run",
        ),
        "question",
        "The commands are serve, chat, generate, bench, doctor, router and top.",
    ),
    Subject(
        (
            "which models are supported",
            "what models does dlcore support",
            "list the supported models",
            "which models can i run",
            "does dlcore run qwen3",
        ),
        "question",
        "dlcore runs Qwen3 models from a Hugging Face folder; other families are added one file "
        "at a time.",
    ),
    Subject(
        (
            "do i need a gpu",
            "can dlcore run without a gpu",
            "does it work on a cpu",
            "is a gpu required",
            "does it run on cpu",
        ),
        "question",
        "No, you do not need a GPU: dlcore runs on a CPU too, and uses a GPU when there is one.",
    ),
    Subject(
        (
            "what features does dlcore have",
            "what can dlcore do",
            "list the features",
            "which features are there",
            "why should i use dlcore",
        ),
        "question",
        "dlcore has continuous batching, chunked prefill, prefix caching, CUDA graphs, streaming, "
        "structured output, tool calling and an OpenAI-compatible API.",
    ),
    Subject(
        (
            "what license does dlcore have",
            "what is the license",
            "is dlcore open source",
            "under which license is it",
        ),
        "question",
        "dlcore is open source under the Apache 2.0 license.",
    ),
    Subject(
        (
            "what language is dlcore written in",
            "is dlcore written in python",
            "which programming language does it use",
            "is it c++ or python",
        ),
        "question",
        "The runtime is written in C++20; Python loads weights, defines models and serves HTTP "
        "and gRPC.",
    ),
    Subject(
        (
            "does dlcore support grpc",
            "is there a grpc server",
            "can i use grpc",
            "do you have grpc",
        ),
        "question",
        "Yes, dlcore serves gRPC with the package dlcore.v1, beside HTTP.",
    ),
    Subject(
        (
            "is the api openai compatible",
            "does it work with openai clients",
            "can i use openai's api",
            "is dlcore compatible with openai",
        ),
        "question",
        "Yes, dlcore speaks the OpenAI API, so the openai client works unchanged.",
    ),
    Subject(
        (
            "give me an overview of dlcore",
            "tell me everything about dlcore",
            "write a long text about dlcore",
            "tell me a lot about dlcore",
            "describe dlcore in detail",
        ),
        "question",
        "dlcore is an inference engine for large language models. A C++ thread per GPU owns the "
        "loop: it takes requests, plans a step, launches one captured CUDA graph and hands out "
        "the tokens of the step before. Python loads the weights, defines the model and serves "
        "HTTP and gRPC; it is not on the path of a step. Requests join and leave the batch at "
        "every step, long prompts are split into chunks, and prompts with the same beginning "
        "share their KV blocks. The API is that of OpenAI, so existing clients work unchanged. "
        "Start it with dlcore serve, talk to it with dlcore chat and measure it with dlcore bench.",
    ),
)

SOCIAL = (
    Subject(
        (
            "hi",
            "hello",
            "hey",
            "hello there",
            "hi there",
            "good morning",
            "good evening",
            "hey there",
        ),
        "question",
        "Hello! Ask me about dlcore, or give me a small sum.",
    ),
    Subject(
        (
            "thanks",
            "thank you",
            "thanks a lot",
            "thank you very much",
            "great, thanks",
            "thx",
            "cheers",
        ),
        "question",
        "You are welcome!",
    ),
    Subject(
        ("bye", "goodbye", "see you", "see you later", "bye bye", "good night"),
        "question",
        "Goodbye!",
    ),
    Subject(
        ("how are you", "how are you doing", "how is it going", "are you ok", "how do you do"),
        "question",
        "I am fine, thank you. What would you like to know about dlcore?",
    ),
    Subject(
        (
            "who are you",
            "what are you",
            "what is your name",
            "are you a robot",
            "are you chatgpt",
            "introduce yourself",
            "what model are you",
            "which model is this",
            "are you human",
        ),
        "question",
        "I am the small demo model that comes with dlcore. I answer questions about dlcore and do "
        "small arithmetic.",
    ),
    Subject(
        (
            "what can you do",
            "what do you know",
            "help",
            "help me",
            "what can i ask you",
            "how can you help me",
            "what are you good at",
        ),
        "question",
        "I can explain dlcore's commands, flags and ideas, and I can add, subtract and multiply "
        "small numbers.",
    ),
    Subject(
        (
            "who made you",
            "who trained you",
            "where do you come from",
            "how were you trained",
            "who created you",
        ),
        "question",
        "The dlcore project trained me from scratch, in a few minutes on one GPU, on text it "
        "generated itself.",
    ),
    Subject(
        (
            "ok",
            "okay",
            "i see",
            "great",
            "nice",
            "cool",
            "good",
            "understood",
            "well done",
            "perfect",
        ),
        "question",
        "Good. Is there anything else about dlcore you would like to know?",
    ),
    Subject(
        (
            "how big are you",
            "how many parameters do you have",
            "how large are you",
            "what is your size",
        ),
        "question",
        "I have about 5 million parameters, about 10 MB in bfloat16.",
    ),
)

SUBJECTS = DLCORE + COMMANDS + FLAGS + PARAMETERS + CONCEPTS + TASKS + QUESTIONS

UNKNOWN_ANSWER = (
    "I don't know. I am a small demo model: I only know about dlcore and small arithmetic."
)
TOO_BIG_ANSWER = "I can only calculate with numbers of up to three digits."
NO_DIVISION_ANSWER = "I can add, subtract and multiply, but I cannot divide."
