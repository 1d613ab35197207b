"""gRPC clients of a dlcore server: `Client` (threads) and `AsyncClient` (asyncio)."""

from dlcore.client.aio import AsyncClient
from dlcore.client.sync import Client

__all__ = ["AsyncClient", "Client"]
