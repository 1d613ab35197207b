from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import text_models

from dlcore.chat_template import ChatTemplate, ChatTemplateError
from dlcore.tokenizer import Tokenizer, TokenizerError, read_eos_token_ids

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_models.write_folder(tmp_path_factory.mktemp("m"), text_models.byte_level())


def load(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(path)
    assert tokenizer is not None
    return tokenizer


def render(template: str, messages: list[dict[str, Any]], **kwargs: Any) -> str:
    tokens = {"eos_token": "<|im_end|>"}
    return ChatTemplate.from_sources({"default": template}, tokens).render(messages, **kwargs)


def test_a_folder_without_a_tokenizer_gives_none(tmp_path: Path) -> None:
    assert Tokenizer.from_folder(tmp_path) is None


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_text_survives_encode_and_decode(folder: Path) -> None:
    tokenizer = load(folder)
    for text in text_models.TEXT:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(text_models.TEXT) == [
        tokenizer.encode(t) for t in text_models.TEXT
    ]


def test_special_tokens_are_dropped_only_on_request(folder: Path) -> None:
    tokenizer = load(folder)
    ids = tokenizer.encode("<|im_start|>a<think>")
    assert tokenizer.decode(ids) == "a<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>a<think>"


def test_eos_ids_are_gathered_from_all_three_files(tmp_path: Path) -> None:
    path = text_models.write_folder(tmp_path, text_models.byte_level())
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    (path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 1}}))
    assert read_eos_token_ids(path) == (0, 2, 1)
    assert load(path).eos_token_ids == (0, 2, 1)
    (path / "generation_config.json").unlink()
    (path / "config.json").unlink()
    assert load(path).eos_token_ids == (2,)


def test_bos_named_in_the_config_is_prepended_once(tmp_path: Path) -> None:
    path = text_models.write_folder(
        tmp_path, text_models.byte_level(), bos_token="<|endoftext|>", add_bos_token=True
    )
    tokenizer = load(path)
    assert tokenizer.encode("a")[0] == 0
    assert tokenizer.encode("<|endoftext|>a").count(0) == 1
    assert 0 not in tokenizer.encode("a", add_special_tokens=False)


def test_the_template_may_be_a_string_a_list_or_a_file(tmp_path: Path) -> None:
    tokenizer = text_models.byte_level()
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    path = text_models.write_folder(tmp_path, tokenizer, chat_template=named)
    assert load(path).apply_chat_template(HELLO) == "d"
    assert load(path).apply_chat_template(HELLO, tools=[{"name": "f"}]) == "t"
    (path / "chat_template.jinja").write_text("file")
    assert load(path).apply_chat_template(HELLO) == "file"


def test_no_template_is_a_clear_error(tmp_path: Path) -> None:
    path = text_models.write_folder(tmp_path, text_models.byte_level(), chat_template=None)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        load(path).apply_chat_template(HELLO)


def test_rendering_follows_the_hugging_face_rules() -> None:
    assert render("{{ eos_token }}{{ messages[0] | tojson }}", [{"a": "<é>"}]) == (
        '<|im_end|>{"a": "<é>"}'
    )
    loop = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}x{% endfor %}"
    assert render(loop, [{}, {}, {}]) == "x"
    assert render("{% generation %}a{% endgeneration %}b", HELLO) == "ab"
    assert render("{{ strftime_now('%Y') }}", HELLO) == str(datetime.now().year)
    assert render("  {% if true %}\nx\n  {% endif %}\n", HELLO) == "x\n"
    assert render("{{ enable_thinking }}", HELLO, enable_thinking=False) == "False"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 // 0 }}",
        "{% for %}",
    ],
)
def test_what_a_template_may_not_do_is_a_chat_template_error(template: str) -> None:
    with pytest.raises(ChatTemplateError, match="chat template"):
        render(template, HELLO)


def test_continue_final_message_leaves_the_last_message_open(folder: Path) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Sure, "}]
    text = load(folder).apply_chat_template(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert text.endswith("assistant\nSure, ")
    with pytest.raises(ChatTemplateError, match="exclude each other"):
        load(folder).apply_chat_template(messages, continue_final_message=True)


def test_rendering_equals_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=text_models.byte_level(), chat_template=text_models.CHAT_TEMPLATE
    )
    messages = [{"role": "system", "content": " be brief\n"}, *HELLO]
    for prompt in (True, False):
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
        ours = load(folder).apply_chat_template(messages, add_generation_prompt=prompt)
        assert ours == expected
