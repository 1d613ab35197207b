"""One node behind the router, as the router sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(str, enum.Enum):
    """What a node does (docs/architecture.md, section 5)."""

    HYBRID = "hybrid"
    PREFILL = "prefill"
    DECODE = "decode"


class State(str, enum.Enum):
    """Transitions: JOINING -> UP on a good check; UP <-> DOWN by checks and errors;
    any -> DRAINING by an operator; DRAINING ends when the node leaves."""

    JOINING = "joining"
    UP = "up"
    DOWN = "down"
    DRAINING = "draining"


@dataclass(slots=True)
class Backend:
    """`url` is the identity. Event-loop thread only."""

    url: str
    role: Role = Role.HYBRID
    state: State = State.JOINING
    resumable: bool = False  # a dlcore node: can go on from tokens another node generated
    models: tuple[str, ...] = ()
    running: int = 0  # requests this router has open there
    load: float = 0.0  # characters of prompt those requests carry
    failures: int = 0  # in a row, of requests and checks together
    total_requests: int = 0
    total_failures: int = 0
    last_error: str = ""

    @property
    def accepts(self) -> bool:
        return self.state is State.UP

    def serves(self, model: str | None) -> bool:
        """True when `model` is one of the node's, or is not said, or the node's are unknown."""
        return model is None or not self.models or model in self.models
