"""`kv_transfer_params`: a prefill node answers with a ticket, a decode node redeems it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from dlcore.kv_peer import KvPeer
from dlcore.kv_ticket import TicketError
from dlcore.outputs import RequestOutput
from dlcore.serve.collect import Collector
from dlcore.serve.context import ServerContext
from dlcore.serve.endpoint import json_body, json_response, stream_response
from dlcore.serve.errors import ApiError, bad_request
from dlcore.serve.generation import Generation, Job
from dlcore.serve.schemas.common import KvTransferParams, SamplingFields
from dlcore.serve.schemas.handover import FreeRequest, FreeResponse
from dlcore.serve.sse import DONE, EventStream

FIELD = "kv_transfer_params"


def with_handover(ctx: ServerContext, fields: SamplingFields, jobs: list[Job]) -> list[Job]:
    """The jobs as this node's part in the hand-over asks. Raises ApiError."""
    asked = fields.kv_transfer_params
    if asked is None or (not asked.do_remote_decode and asked.ticket is None):
        return jobs
    peer = ctx.engine.kv_peer
    if peer is None:
        raise bad_request(f"{FIELD}: this node has no part in it (--role)", FIELD)
    if len(jobs) != 1:
        raise bad_request(f"{FIELD}: send one prompt, not {len(jobs)}", FIELD)
    if asked.ticket is not None:
        return [_redeemed(peer, asked.ticket, jobs[0])]
    if peer.role != "prefill":
        raise bad_request(f"{FIELD}: do_remote_decode is for prefill nodes (--role prefill)", FIELD)
    return [_prefill_alone(jobs[0])]


def ticket_stream(
    ctx: ServerContext, fields: SamplingFields, generation: Generation
) -> EventStream | None:
    """The answer to a stream with do_remote_decode; None where it is not one."""
    asked, peer = fields.kv_transfer_params, ctx.engine.kv_peer
    if peer is None or asked is None or not asked.do_remote_decode or asked.ticket is not None:
        return None
    if not fields.stream:
        return None
    return stream_response(ctx, generation, TicketStream(peer, generation.jobs[0]))


class TicketStream:
    """StreamEncoder: the ticket as soon as the prompt's computation begins, then nothing until
    it ends. A client that leaves before the end ends it."""

    def __init__(self, peer: KvPeer, job: Job) -> None:
        self._peer = peer
        self._job = job
        self._sent = False

    def on_start(self) -> bytes:
        return b""

    def on_output(self, job: int, output: RequestOutput) -> bytes:
        if output.kv_lease is None or self._sent:
            return b""
        self._sent = True
        prompt, salt = self._job.prompt.token_ids, self._job.cache_salt
        params = KvTransferParams(ticket=self._peer.ticket(output.kv_lease, prompt, salt))
        return b"data: " + msgspec.json.encode({FIELD: params}) + b"\n\n"

    def on_end(self) -> bytes:
        return DONE

    def on_error(self, error: ApiError) -> bytes:
        return b"data: " + msgspec.json.encode(error.openai()) + b"\n\n" + DONE


def handed_over(ctx: ServerContext, job: Job, collector: Collector) -> KvTransferParams | UnsetType:
    """What the answer says of the lease; unset where the answer needs no other node."""
    peer = ctx.engine.kv_peer
    if collector.kv_lease is None or peer is None:
        return UNSET
    if collector.choices[0].finish_reason != "length":
        peer.give_up(collector.kv_lease)
        return UNSET
    first_token = collector.choices[0].token_ids[-1]
    ticket = peer.ticket(collector.kv_lease, job.prompt.token_ids, job.cache_salt, first_token)
    return KvTransferParams(ticket=ticket)


def _prefill_alone(job: Job) -> Job:
    """The first token alone; its KV is held unless one token is all that was asked for."""
    params = replace(
        job.params,
        n=1,
        max_tokens=1,
        min_tokens=min(job.params.min_tokens, 1),
        prompt_logprobs=None,
    )
    return replace(job, params=params, hold_kv=job.params.max_tokens != 1)


def _redeemed(peer: KvPeer, ticket: str, job: Job) -> Job:
    try:
        return replace(job, kv_source=peer.source(ticket, job.prompt.token_ids, job.cache_salt))
    except TicketError as error:
        raise _refused(error) from None


def _refused(error: TicketError) -> ApiError:
    return ApiError(
        403, f"{FIELD}: {error}", kind="permission_error", param=FIELD, code="invalid_ticket"
    )


class HandoverEndpoint:
    """POST /pd/free: the ticket will not be used; its KV may go at once."""

    def __init__(self, ctx: ServerContext) -> None:
        self._ctx = ctx

    async def free(self, request: Request) -> Response:
        body = await json_body(self._ctx, request, FreeRequest)
        peer = self._ctx.engine.kv_peer
        if peer is None or peer.role != "prefill":
            raise bad_request("ticket: this node grants none (--role prefill)", "ticket")
        try:
            return json_response(FreeResponse(released=await peer.release(body.ticket)))
        except TicketError as error:
            raise _refused(error) from None
