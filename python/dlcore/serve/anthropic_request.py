"""An Anthropic Messages request -> a chat request."""

from __future__ import annotations

from typing import Any

import msgspec

from dlcore.serve.errors import bad_request
from dlcore.serve.schemas.anthropic import (
    AnthropicTool,
    Block,
    CountTokensRequest,
    MessageParam,
    MessagesRequest,
    SystemBlock,
)
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

_TOOL_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def to_chat_request(request: CountTokensRequest) -> ChatRequest:
    """Raises ApiError 400 for a block that cannot be expressed."""
    messages = _system(request.system)
    for i, message in enumerate(request.messages):
        messages += _messages(message, f"messages[{i}]")
    chat = ChatRequest(
        model=request.model,
        messages=messages,
        tools=[_tool(t, f"tools[{i}]") for i, t in enumerate(request.tools or [])] or None,
        tool_choice=_tool_choice(request),
        chat_template_kwargs=_thinking(request),
    )
    if request.tool_choice is not None and request.tool_choice.disable_parallel_tool_use:
        chat.parallel_tool_calls = False
    # A last assistant turn is the beginning of the answer.
    chat.continue_final_message = messages[-1].role == "assistant"
    if isinstance(request, MessagesRequest):
        _add_sampling(chat, request)
    return chat


def _add_sampling(chat: ChatRequest, request: MessagesRequest) -> None:
    chat.max_tokens = request.max_tokens
    chat.stop = request.stop_sequences
    chat.stream = request.stream
    chat.seed = request.seed
    chat.resume_token_ids = [*request.resume_token_ids] if request.resume_token_ids else None
    chat.temperature = request.temperature
    chat.top_p = request.top_p or None
    chat.top_k = request.top_k
    if request.metadata is not None:
        chat.user = request.metadata.user_id


def _system(system: str | list[SystemBlock] | None) -> list[Message]:
    if isinstance(system, list):
        system = "\n".join(block.text for block in system)
    return [Message(role="system", content=system)] if system else []


def _messages(message: MessageParam, where: str) -> list[Message]:
    if isinstance(message.content, str):
        return [Message(role=message.role, content=message.content)]
    if message.role == "assistant":
        return [_assistant(message.content, where)]
    result: list[Message] = []
    texts: list[str] = []
    for i, block in enumerate(message.content):
        at = f"{where}.content[{i}]"
        if block.type == "tool_result":
            result.append(_tool_result(block, at))
        else:
            texts.append(_text(block, at))
    if texts or not result:
        result.append(Message(role=message.role, content="\n".join(texts)))
    return result


def _assistant(blocks: list[Block], where: str) -> Message:
    message = Message(role="assistant")
    texts: list[str] = []
    calls: list[ToolCall] = []
    for i, block in enumerate(blocks):
        at = f"{where}.content[{i}]"
        if block.type == "thinking":
            message.reasoning_content = (message.reasoning_content or "") + (block.thinking or "")
        elif block.type == "tool_use":
            calls.append(_tool_use(block, at))
        elif block.type != "redacted_thinking":
            texts.append(_text(block, at))
    message.content = "\n".join(texts) if texts else None
    message.tool_calls = calls or None
    return message


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise bad_request(f"{where}: this model does not take {block.type} input, only text", where)
    if block.text is None:
        raise bad_request(f"{where}.text: is needed", f"{where}.text")
    return block.text


def _tool_use(block: Block, where: str) -> ToolCall:
    if block.id is None or block.name is None:
        raise bad_request(f"{where}: tool_use needs id and name", where)
    arguments = msgspec.json.encode(block.input or {}).decode()
    return ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=arguments))


def _tool_result(block: Block, where: str) -> Message:
    if block.tool_use_id is None:
        raise bad_request(f"{where}.tool_use_id: is needed", f"{where}.tool_use_id")
    content = block.content
    if isinstance(content, list):
        content = "\n".join(_result_text(item, where) for item in content)
    return Message(role="tool", tool_call_id=block.tool_use_id, content=content or "")


def _result_text(item: dict[str, Any], where: str) -> str:
    text = item.get("text")
    if item.get("type") != "text" or not isinstance(text, str):
        raise bad_request(f"{where}.content: this model takes only text results", where)
    return text


def _tool(tool: AnthropicTool, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise bad_request(f"{where}.type: {tool.type!r} runs at Anthropic, not here", where)
    if tool.input_schema is None:
        raise bad_request(f"{where}.input_schema: is needed", f"{where}.input_schema")
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(function=function)


def _tool_choice(request: CountTokensRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if choice is None:
        return None
    if choice.type == "tool":
        if choice.name is None:
            raise bad_request("tool_choice.name: is needed", "tool_choice.name")
        return NamedTool(function=FunctionName(name=choice.name))
    return _TOOL_CHOICES[choice.type]


def _thinking(request: CountTokensRequest) -> dict[str, Any] | None:
    if request.thinking is None:
        return None
    on = request.thinking.type != "disabled"
    return {"enable_thinking": on, "thinking": on}
