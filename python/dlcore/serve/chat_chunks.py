"""The chunks of a streamed chat completion.

Most chunks carry only text. Those are cut from bytes encoded once per request; only the
text itself is encoded for each.
"""

from __future__ import annotations

import msgspec

from dlcore.serve.schemas.chat import ChatChunkChoice, ChatDelta
from dlcore.serve.schemas.common import Usage

_encode = msgspec.json.encode


class ChatChunks:
    def __init__(self, response_id: str, created: int, model: str, *, null_usage: bool) -> None:
        head = {"id": response_id, "object": "chat.completion.chunk", "created": created}
        self._head = b"data: " + _encode({**head, "model": model})[:-1] + b',"choices":['
        # With include_usage every chunk but the last says "usage": null.
        self._tail = b'],"usage":null}\n\n' if null_usage else b"]}\n\n"
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._text_heads: list[bytes] = []

    def text(self, index: int, text: str) -> bytes:
        """A chunk whose delta is `text` alone."""
        while index >= len(self._text_heads):
            head = b'{"index":%d,"delta":{"content":' % len(self._text_heads)
            self._text_heads.append(self._head + head)
        return self._text_heads[index] + _encode(text) + self._text_tail

    def choice(self, choice: ChatChunkChoice, usage: Usage | None = None) -> bytes:
        if usage is None:
            return self._head + _encode(choice) + self._tail
        return self._head + _encode(choice) + b'],"usage":' + _encode(usage) + b"}\n\n"

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + _encode(usage) + b"}\n\n"

    def role(self, index: int) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return self.choice(ChatChunkChoice(index=index, delta=delta))
