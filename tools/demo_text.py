"""The text the demo model learns from: random chats about dlcore and small sums.

Everything is drawn from a seeded `random.Random`, so a seed names a corpus. A tenth of the
(question wording, subject) pairs and a twentieth of the sums are held out for evaluation:
`is_held_out` decides by a hash, never by chance.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from demo_facts import Subject
from demo_phrases import (
    CLOSERS,
    DEFAULT,
    DOES,
    FLAG_WORDS,
    FOREIGN,
    OPENERS,
    OWN_FORMS,
    PLAIN,
    SPELLED,
    SUM_FORMS,
    SYSTEM_PROMPTS,
    TASK,
    TOOL_ASKS,
    TOOL_INTRO,
    TOOL_OUTRO,
    TOOLS,
    UNKNOWN,
    WHAT,
    WORDS,
)
from demo_questions import (
    NO_DIVISION_ANSWER,
    SOCIAL,
    SUBJECTS,
    TOO_BIG_ANSWER,
    UNKNOWN_ANSWER,
)

# A segment of rendered text and whether the model is to learn to write it.
Segment = tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Example:
    """One question and its one right answer. `key` identifies the wording for holding out."""

    question: str
    answer: str
    key: str


def is_held_out(key: str, one_in: int = 10) -> bool:
    return zlib.crc32(key.encode()) % one_in == 0


_TEMPLATES = {
    "thing": WHAT,
    "command": DOES,
    "flag": DOES,
    "task": TASK,
    "question": PLAIN,
}


def _fact_examples(subject: Subject) -> Iterator[Example]:
    for name in subject.names:
        for template in _TEMPLATES[subject.kind]:
            question = template.format(x=name)
            yield Example(question, subject.answer, question)
        if subject.default:
            for template in DEFAULT:
                question = template.format(x=name)
                yield Example(question, subject.default, question)


FACT_EXAMPLES = tuple(e for s in SUBJECTS for e in _fact_examples(s))
SOCIAL_EXAMPLES = tuple(e for s in SOCIAL for e in _fact_examples(s))
_FACTS_BY_SUBJECT = tuple(
    tuple(e for e in _fact_examples(s) if s.kind == "question" or not is_held_out(e.key))
    for s in SUBJECTS
)

# Wordings no template contains: a harder test than the held-out pairs.
UNSEEN_WORDINGS = tuple(
    Example(question, next(s for s in SUBJECTS if name in s.names).answer, question)
    for question, name in (
        ("could you give me the idea behind prefix caching", "prefix caching"),
        ("what on earth is a KV block", "a KV block"),
        ("i keep reading about prefill, what is that", "prefill"),
        ("quick question: what is decode", "decode"),
        ("remind me what continuous batching is", "continuous batching"),
        ("what is the point of chunked prefill", "chunked prefill"),
        ("so what is this dlcore thing", "dlcore"),
        ("what's the job of dlcore doctor", "dlcore doctor"),
        ("what would dlcore bench show me", "dlcore bench"),
        ("i saw the flag --api-key, what does it do", "--api-key"),
        ("what is --max-model-len about", "--max-model-len"),
        ("any idea what --served-model-name does", "--served-model-name"),
        ("what does setting temperature do", "temperature"),
        ("and what about top_p", "top_p"),
        ("what is the best way to measure throughput", "measure throughput"),
        ("can you show me how to start a server", "start a server"),
        ("which routes are there", "which endpoints are there"),
        ("do i really need a gpu", "do i need a gpu"),
        ("what kind of models can i run", "which models are supported"),
        ("tell me all the commands", "which commands are there"),
    )
)


def sum_key(a: int, op: str, b: int) -> str:
    return f"{a}{op}{b}"


def sum_answer(a: int, op: str, b: int) -> str:
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return f"{a} {op} {b} = {result}."


def draw_sum(rng: random.Random, op: str, digits: int) -> tuple[int, int]:
    """Operands of up to `digits` digits, short ones over-represented."""
    if op == "*":
        a, b = rng.randrange(10 ** min(digits, 2)), rng.randrange(13)
        return (a, b) if rng.random() < 0.5 else (b, a)
    a, b = (rng.randrange(10 ** rng.choice(range(1, digits + 1))) for _ in range(2))
    return (a, b) if op == "+" or a >= b or rng.random() < 0.3 else (b, a)


def sum_example(rng: random.Random, a: int, op: str, b: int) -> Example:
    spelled = rng.choice(SPELLED.get(op, (op,)))
    form = rng.choice(OWN_FORMS[op] if rng.random() < 0.2 else SUM_FORMS)
    question = form.format(a=a, b=b, o=spelled, w=WORDS[op])
    return Example(question, sum_answer(a, op, b), sum_key(a, op, b))


def _training_sum(rng: random.Random) -> Example:
    while True:
        op = rng.choices("+-*", (5, 5, 3))[0]
        a, b = draw_sum(rng, op, rng.choices((1, 2, 3), (1, 3, 6))[0])
        if not is_held_out(sum_key(a, op, b), 20):
            return sum_example(rng, a, op, b)


def _refused_sum(rng: random.Random) -> Example:
    if rng.random() < 0.4:
        a, b = rng.randrange(1000), rng.randrange(1, 100)
        form = rng.choice(
            ("{a} / {b}", "{a}/{b}", "what is {a} divided by {b}", "divide {a} by {b}")
        )
        return Example(form.format(a=a, b=b), NO_DIVISION_ANSWER, form)
    a, b = rng.randrange(10**4, 10**7), rng.randrange(10 ** rng.randrange(1, 7))
    if rng.random() < 0.5:
        a, b = b, a
    form = rng.choice(SUM_FORMS)
    op = rng.choice("+-*")
    return Example(form.format(a=a, b=b, o=op, w=WORDS[op]), TOO_BIG_ANSWER, form)


def count_example(rng: random.Random) -> Example:
    first = rng.choice((0, 1, 1, 1, rng.randrange(50)))
    last = first + rng.randrange(3, 50)
    form = rng.choice(("count from {a} to {b}", "please count from {a} to {b}", "count {a} to {b}"))
    answer = ", ".join(str(i) for i in range(first, last + 1)) + "."
    return Example(form.format(a=first, b=last), answer, f"count {first} {last}")


_KNOWN_NAMES = frozenset(name for s in SUBJECTS + SOCIAL for name in s.names)


def _made_up_word(rng: random.Random) -> str:
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randrange(2, 5))
    )


def unknown_example(rng: random.Random) -> Example:
    kind = rng.random()
    if kind < 0.6:
        thing = rng.choice(FOREIGN)
    elif kind < 0.85:
        thing = _made_up_word(rng)
    else:
        thing = "--" + "-".join(rng.sample(FLAG_WORDS, rng.randrange(1, 4)))
    template = rng.choice(UNKNOWN if not thing.startswith("--") else DOES + DEFAULT)
    question = template.format(x=thing)
    return Example(question, UNKNOWN_ANSWER, question)


def _typo(rng: random.Random, text: str) -> str:
    """One slip in one word of five letters or more that is not a flag or a name."""
    words = text.split(" ")
    places = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    word = words[i]
    at = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(3)
    if slip == 0:
        word = word[:at] + word[at + 1 :]
    elif slip == 1:
        word = word[:at] + word[at] + word[at:]
    else:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[i] = word
    return " ".join(words)


def as_typed(rng: random.Random, question: str) -> str:
    """The question as a person might type it: politeness, slips, casing, punctuation."""
    if rng.random() < 0.15 and question not in _KNOWN_NAMES:
        question = rng.choice(OPENERS) + question
    if rng.random() < 0.08 and question not in _KNOWN_NAMES:
        question = question + rng.choice(CLOSERS)
    if rng.random() < 0.12:
        question = _typo(rng, question)
    case = rng.random()
    if case < 0.45:
        question = question[:1].upper() + question[1:]
    elif case < 0.5:
        question = question.upper()
    elif case < 0.6:
        question = question.lower()
    return question + rng.choices(("", "?", ".", "!", " ?", "??"), (8, 10, 2, 1, 1, 1))[0]


def _draw_example(rng: random.Random) -> Example:
    kind = rng.random()
    if kind < 0.46:
        return rng.choice(rng.choice(_FACTS_BY_SUBJECT))
    if kind < 0.82:
        return _training_sum(rng)
    if kind < 0.89:
        return unknown_example(rng)
    if kind < 0.91:
        return _refused_sum(rng)
    if kind < 0.93:
        return count_example(rng)
    return rng.choice(SOCIAL_EXAMPLES)


def system_turn(text: str) -> Segment:
    return (f"<|im_start|>system\n{text}<|im_end|>\n", False)


def user_turn(text: str) -> Segment:
    """A user's message and the opening of the answer."""
    return (f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", False)


def chat(rng: random.Random) -> list[Segment]:
    segments: list[Segment] = []
    if rng.random() < 0.35:
        segments.append(system_turn(rng.choice(SYSTEM_PROMPTS)))
    for _ in range(rng.choices((1, 2, 3, 4, 6, 8), (5, 3, 2, 2, 1, 1))[0]):
        example = _draw_example(rng)
        segments.append(user_turn(as_typed(rng, example.question)))
        segments.append((f"{example.answer}<|im_end|>", True))
        segments.append(("\n", False))
    return segments


def tool_schema(name: str) -> dict[str, object]:
    description, argument, _ = TOOLS[name]
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def tools_prompt(names: list[str]) -> str:
    return TOOL_INTRO + "\n".join(json.dumps(tool_schema(n)) for n in names) + TOOL_OUTRO


def tool_chat(rng: random.Random) -> list[Segment]:
    """A chat in which one question needs a tool, sometimes with the tool's result."""
    names = rng.sample(list(TOOLS), rng.randrange(1, 4))
    prefix = rng.choice(SYSTEM_PROMPTS) + "\n\n" if rng.random() < 0.3 else ""
    segments = [system_turn(prefix + tools_prompt(names))]
    if rng.random() < 0.3:
        example = _draw_example(rng)
        segments += [
            user_turn(as_typed(rng, example.question)),
            (example.answer + "<|im_end|>", True),
        ]
        segments.append(("\n", False))
    name = rng.choice(names)
    value = rng.choice(TOOLS[name][2]) if rng.random() < 0.5 else _made_up_word(rng).capitalize()
    question = rng.choice(TOOL_ASKS[name]).format(v=value)
    call = json.dumps({"name": name, "arguments": {TOOLS[name][1]: value}})
    segments.append(user_turn(question + rng.choice(("", "?", "."))))
    segments.append((f"<tool_call>\n{call}\n</tool_call><|im_end|>", True))
    if rng.random() < 0.5:
        result = rng.choice(("sunny", "done", "not found", f"{rng.randrange(40)} degrees", "12:30"))
        segments.append(("\n", False))
        segments.append(user_turn(f"<tool_response>\n{result}\n</tool_response>"))
        segments.append((f"{name} says: {result}.<|im_end|>", True))
    segments.append(("\n", False))
    return segments


def document(rng: random.Random) -> list[Segment]:
    """Plain text for completion without a chat template."""
    if rng.random() < 0.4:
        sums = [_training_sum(rng).answer for _ in range(rng.randrange(2, 8))]
        return [("\n".join(sums) + "<|endoftext|>", True)]
    answers = [rng.choice(SUBJECTS).answer for _ in range(rng.randrange(2, 6))]
    return [(" ".join(answers) + "<|endoftext|>", True)]


def conversation(rng: random.Random) -> list[Segment]:
    """One training document: segments in order; join their texts for the whole."""
    kind = rng.random()
    if kind < 0.04:
        return document(rng)
    return tool_chat(rng) if kind < 0.1 else chat(rng)
