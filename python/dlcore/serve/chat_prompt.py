"""Chat messages as clients send them -> what a chat template reads."""

from __future__ import annotations

from typing import Any

import msgspec

from dlcore.serve.errors import bad_request
from dlcore.serve.prompt import ChatPrompt
from dlcore.serve.schemas.chat import (
    ChatRequest,
    ContentPart,
    Message,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)

# Template variables a client's chat_template_kwargs must not replace.
_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "self",
        "text",
    }
)


def chat_prompt(request: ChatRequest) -> ChatPrompt:
    """Raises ApiError 400 naming the message at fault."""
    continues = bool(request.continue_final_message)
    add_prompt = request.add_generation_prompt
    if continues and add_prompt:
        raise bad_request(
            "continue_final_message: cannot be combined with add_generation_prompt",
            "continue_final_message",
        )
    if continues and request.messages[-1].role != "assistant":
        raise bad_request(
            "continue_final_message: the last message must be the assistant's",
            "continue_final_message",
        )
    tools = request.tools if request.tool_choice != "none" else None
    return ChatPrompt(
        messages=[template_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)],
        tools=[msgspec.to_builtins(_tool(tool)) for tool in tools] if tools else None,
        documents=request.documents,
        add_generation_prompt=(not continues) if add_prompt is None else add_prompt,
        continue_final_message=continues,
        template_kwargs=_template_kwargs(request),
        add_special_tokens=bool(request.add_special_tokens),
    )


def _tool(tool: Any) -> dict[str, Any]:
    function = {k: v for k, v in msgspec.to_builtins(tool.function).items() if v is not None}
    return {"type": "function", "function": function}


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    kwargs = dict(request.chat_template_kwargs or {})
    clash = _RESERVED & kwargs.keys()
    if clash:
        name = f"chat_template_kwargs.{sorted(clash)[0]}"
        raise bad_request(f"{name}: is set by the server", name)
    effort = request.reasoning_effort
    if effort is not None:
        kwargs.setdefault("reasoning_effort", effort)
        if effort == "none":  # how the templates of hybrid reasoning models spell it
            kwargs.setdefault("enable_thinking", False)
            kwargs.setdefault("thinking", False)
    return kwargs


def template_message(message: Message, where: str) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    result: dict[str, Any] = {"role": role, "content": _content(message, where)}
    for name in ("name", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            result[name] = value
    reasoning = message.reasoning_content or message.reasoning or _thinking(message)
    if reasoning:
        result["reasoning_content"] = reasoning
    if message.tool_calls:
        result["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls)
        ]
    return result


def _content(message: Message, where: str) -> str:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise bad_request(
                f"{where}.content: must not be null for role {message.role}", f"{where}.content"
            )
        return message.refusal or ""
    if isinstance(content, str):
        return content
    texts = [_part_text(p, f"{where}.content[{i}]") for i, p in enumerate(content)]
    return "\n".join(text for text in texts if text is not None)


def _part_text(part: ContentPart, where: str) -> str | None:
    match part:
        case TextPart(text=text):
            return text
        case RefusalPart(refusal=refusal):
            return refusal
        case ThinkingPart():
            return None
    kind = type(part).__struct_config__.tag
    raise bad_request(f"{where}: this model does not take {kind} input, only text", where)


def _thinking(message: Message) -> str:
    if not isinstance(message.content, list):
        return ""
    return "\n".join(p.thinking for p in message.content if isinstance(p, ThinkingPart))


def _tool_call(call: ToolCall, where: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _arguments(call, where)}
    result: dict[str, Any] = {"type": "function", "function": function}
    if call.id is not None:
        result["id"] = call.id
    return result


def _arguments(call: ToolCall, where: str) -> Any:
    """An object: templates print its items, while clients send it as a JSON string."""
    given = call.function.arguments
    if not isinstance(given, str):
        return given
    try:
        return msgspec.json.decode(given) if given.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        param = f"{where}.function.arguments"
        raise bad_request(f"{param}: must be a JSON object as a string", param) from None
