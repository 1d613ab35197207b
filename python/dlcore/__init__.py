"""dlcore: an LLM inference engine with a C++ runtime and thin Python bindings.

>>> from dlcore import LLM, SamplingParams
>>> with LLM() as llm:
...     print(llm.generate("What is 3 + 4?", SamplingParams(max_tokens=32))[0].outputs[0].text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dlcore.config import ConfigError, EngineConfig
from dlcore.outputs import CompletionOutput, Logprob, RequestOutput
from dlcore.sampling_params import ParameterError, SamplingParams, StructuredOutputs
from dlcore.version import VERSION

if TYPE_CHECKING:
    from dlcore.async_llm import AsyncLLM
    from dlcore.llm import LLM

__version__ = VERSION

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "ConfigError",
    "EngineConfig",
    "Logprob",
    "ParameterError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
]

# Imported when first used: they import torch, and most commands need no engine.
_LAZY = {"LLM": "dlcore.llm", "AsyncLLM": "dlcore.async_llm"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
