"""A Responses request, and what it builds on -> a chat request."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.serve.errors import bad_request
from dlcore.serve.schemas.chat import (
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    Message,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
)
from dlcore.serve.schemas.common import JsonSchemaFormat, ResponseFormat
from dlcore.serve.schemas.responses import (
    FunctionChoice,
    InputItem,
    InputPart,
    ResponsesRequest,
    TextOptions,
)

WITH_LOGPROBS = "message.output_text.logprobs"

# What a chat request's fields are called here.
FIELDS_OF_CHAT = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def to_chat_request(request: ResponsesRequest, history: Sequence[Message]) -> ChatRequest:
    """`history`: the conversation `previous_response_id` stands for. Raises ApiError 400."""
    system = [Message(role="system", content=request.instructions)] if request.instructions else []
    logprobs = WITH_LOGPROBS in (request.include or ())
    return ChatRequest(
        model=request.model,
        messages=[*system, *history, *input_messages(request.input)],
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=request.seed,
        repetition_penalty=request.repetition_penalty,
        stream=request.stream,
        resume_token_ids=[*request.resume_token_ids] if request.resume_token_ids else None,
        logprobs=logprobs,
        top_logprobs=request.top_logprobs if logprobs else None,
        tools=_tools(request) or None,
        tool_choice=_tool_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
        response_format=_response_format(request.text),
        truncate_prompt_tokens=-1 if request.truncation == "auto" else None,
        priority=request.priority,
        cache_salt=request.cache_salt,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def input_messages(given: str | Sequence[InputItem]) -> list[Message]:
    if isinstance(given, str):
        return [Message(role="user", content=given)]
    messages: list[Message] = []
    for i, item in enumerate(given):
        _add_item(messages, item, f"input[{i}]")
    return messages


def _add_item(messages: list[Message], item: InputItem, where: str) -> None:
    match item.type:
        case "message":
            if item.role is None:
                raise bad_request(f"{where}.role: is needed", f"{where}.role")
            _add_message(messages, item.role, _text(item.content, f"{where}.content"))
        case "reasoning":
            parts = item.content if isinstance(item.content, list) else item.summary
            _open_turn(messages).reasoning_content = _text(parts or [], f"{where}.content")
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise bad_request(f"{where}: needs call_id and output", where)
            text = _text(item.output, f"{where}.output")
            messages.append(Message(role="tool", tool_call_id=item.call_id, content=text))
        case "item_reference":
            raise bad_request(
                f"{where}: items cannot be referenced; send them, or use previous_response_id",
                where,
            )


def _add_message(messages: list[Message], role: str, text: str) -> None:
    if role == "assistant":
        last = _open_turn(messages)
        last.content = f"{last.content or ''}{text}"
        return
    messages.append(Message(role="system" if role != "user" else "user", content=text))


def _add_call(messages: list[Message], item: InputItem, where: str) -> None:
    if item.call_id is None or item.name is None:
        raise bad_request(f"{where}: needs call_id and name", where)
    call = ToolCall(
        id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments or "")
    )
    turn = _open_turn(messages)
    turn.tool_calls = [*(turn.tool_calls or []), call]


def _open_turn(messages: list[Message]) -> Message:
    """The assistant's turn: its reasoning, text and calls arrive as items of their own."""
    if not messages or messages[-1].role != "assistant":
        messages.append(Message(role="assistant"))
    return messages[-1]


def _text(content: str | list[InputPart] | None, where: str) -> str:
    if content is None:
        raise bad_request(f"{where}: must not be null", where)
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            message = f"{where}[{i}]: this model does not take {part.type} without text"
            raise bad_request(message, f"{where}[{i}]")
        texts.append(text)
    return "\n".join(texts)


def _tools(request: ResponsesRequest) -> list[Tool]:
    return [
        Tool(
            function=Function(
                name=tool.name,
                description=tool.description,
                parameters=tool.parameters,
                strict=tool.strict,
            )
        )
        for tool in request.tools or []
    ]


def _tool_choice(request: ResponsesRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if isinstance(choice, FunctionChoice):
        return NamedTool(function=FunctionName(name=choice.name))
    # Clients send "auto" without tools as a matter of course.
    return choice if request.tools else None


def _response_format(text: TextOptions | None) -> ResponseFormat | None:
    given = text.format if text is not None else None
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return ResponseFormat(type="json_object")
    schema = JsonSchemaFormat(name=given.name or "response", schema=given.schema)
    return ResponseFormat(type="json_schema", json_schema=schema)
