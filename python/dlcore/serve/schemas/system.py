"""Small answers for operators, and the shape of errors."""

from __future__ import annotations

from msgspec import Struct


class Status(Struct, kw_only=True):
    status: str


class Version(Struct, kw_only=True):
    version: str


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Struct, kw_only=True):
    """How every route but /v1/messages answers an error."""

    error: ErrorDetail


class AnthropicErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class AnthropicError(Struct, kw_only=True):
    """How /v1/messages answers an error."""

    type: str
    error: AnthropicErrorDetail
