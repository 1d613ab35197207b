"""A node's part in Prefill-Decode disaggregation: grants tickets, redeems them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from dlcore.config import KvTransferConfig
from dlcore.kv_link import KvLink, NamedLease
from dlcore.kv_ticket import KvTicket, TicketError, open_ticket, prompt_hash, sign_ticket
from dlcore.outputs import KvLease

logger = logging.getLogger("dlcore.kv")

RELEASE_TIMEOUT_S = 5.0


class KvPeer:
    """Thread safety: that of the link."""

    def __init__(self, link: KvLink, config: KvTransferConfig) -> None:
        self._link = link
        self._config = config

    @property
    def role(self) -> str:
        """ "prefill" or "decode"."""
        return self._config.role

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where this node's leases are read; empty on a decode node."""
        return self._link.endpoints

    def give_up(self, lease: KvLease) -> None:
        """Ends a lease of this node that nobody was told of."""
        self._link.release(lease.lease_id, lease.epoch)

    def ticket(
        self,
        lease: KvLease,
        prompt_token_ids: Sequence[int],
        cache_salt: str,
        first_token: int | None = None,
    ) -> str:
        """The signed name of a lease of this node. `first_token`: None while it is not known."""
        ticket = KvTicket(
            endpoints=self.endpoints,
            lease_id=lease.lease_id,
            epoch=lease.epoch,
            num_tokens=lease.num_tokens,
            prompt_hash=prompt_hash(prompt_token_ids, cache_salt),
            first_token=first_token,
            expires=time.time() + self._config.lease_ttl_s,
        )
        return sign_ticket(ticket, self._config.key)

    def source(self, text: str, prompt_token_ids: Sequence[int], cache_salt: str) -> Any:
        """What the core pulls from; None where the prompt is better computed here (said in the
        log). Raises TicketError for a ticket that is forged or for another prompt."""
        ticket = open_ticket(text, self._config.key)
        if ticket.prompt_hash != prompt_hash(prompt_token_ids, cache_salt):
            raise TicketError("the ticket is for another prompt")
        if ticket.expired:
            logger.warning("a ticket expired before it was used; computing the prompt here")
            return None
        return self._link.source(
            NamedLease(
                endpoints=ticket.endpoints,
                lease_id=ticket.lease_id,
                epoch=ticket.epoch,
                num_tokens=ticket.num_tokens,
                recompute_on_failure=self._config.recompute_on_failure,
            )
        )

    async def release(self, text: str) -> bool:
        """Ends the ticket's lease, one of this node's. False when it had ended.

        Raises TicketError, and TimeoutError when the engine does not answer.
        """
        ticket = open_ticket(text, self._config.key)
        answer = self._link.release(ticket.lease_id, ticket.epoch)
        return await asyncio.wait_for(asyncio.wrap_future(answer), RELEASE_TIMEOUT_S)
