"""`resume_token_ids`: a stream that another server began, and lost; and what makes it possible."""

from __future__ import annotations

import msgspec

from dlcore.named_event import TOKEN_IDS_EVENT, named_event
from dlcore.outputs import CompletionOutput
from dlcore.resumption import FIELD, ResumeTokenIds, check_resume_count
from dlcore.serve.errors import bad_request
from dlcore.serve.schemas.common import SamplingFields


def resume_of_jobs(fields: SamplingFields, num_jobs: int) -> list[ResumeTokenIds | None]:
    """Each job's share of the field, in the order of the choices. Where all of them finished,
    the end of the stream (its usage) is all that is left to send.

    Raises ApiError or ParameterError for a field that does not fit the request.
    """
    resume = fields.resume_token_ids
    if resume is None:
        return [None] * num_jobs
    if not fields.stream:
        raise bad_request(f"{FIELD}: only when stream is true", FIELD)
    n = fields.n or 1
    check_resume_count(resume, num_jobs * n)
    return [resume[i * n : (i + 1) * n] for i in range(num_jobs)]


def token_ids_event(out: CompletionOutput) -> bytes:
    """The event, for APIs of named events, that closes an output: whoever has it has all before."""
    data = {"type": TOKEN_IDS_EVENT, "token_ids": out.token_ids, "finish_reason": out.finish_reason}
    return named_event(TOKEN_IDS_EVENT, msgspec.json.encode(data))
