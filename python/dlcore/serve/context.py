"""What every endpoint is given: the engine, the settings, and the server's shared parts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from dlcore.engine_client import EngineClient
from dlcore.serve.body import UnknownFields
from dlcore.serve.config import ServeConfig
from dlcore.serve.drain import Drain
from dlcore.serve.errors import not_found
from dlcore.serve.metrics import Metrics


@dataclass(slots=True)
class ServerContext:
    engine: EngineClient
    config: ServeConfig
    metrics: Metrics
    drain: Drain = field(default_factory=Drain)
    unknown_fields: UnknownFields = field(default_factory=UnknownFields)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.config.served_model_name or (self.engine.model_name,)

    def resolve_model(self, asked: str | None) -> str:
        """The name to answer with. Raises ApiError 404 for a model that is not served."""
        names = self.model_names
        if not asked or asked in names:
            return asked or names[0]
        served = ", ".join(names)
        raise not_found(
            f"the model {asked!r} is not served here; served: {served}", "model", "model_not_found"
        )


def make_context(engine: EngineClient, config: ServeConfig) -> ServerContext:
    names = config.served_model_name or (engine.model_name,)
    return ServerContext(engine, config, Metrics(names[0], engine.stats))
