"""One completion while it grows: the core's tokens in, deltas of text out."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.detokenizer import DetokenizerFactory
from dlcore.outputs import CompletionOutput, Logprob, LogprobsAtPosition
from dlcore.sampling_params import ParameterError, SamplingParams
from dlcore.stop_strings import StopStringScanner
from dlcore.tokenizer import Tokenizer

FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ABORT, FINISH_ERROR = range(5)
FINISH_REASONS = (None, "stop", "length", "abort", "error")

# As the core reports a position: logprob, rank, top ids, top logprobs.
CoreLogprobs = tuple[float, int, list[int], list[float]]


class CompletionState:
    """Owns the text of one of a request's `n` completions. Not thread safe."""

    __slots__ = (
        "_cumulative",
        "_detokenizer",
        "_eos",
        "_num_tokens",
        "_params",
        "_scanner",
        "_tokenizer",
        "finished",
        "index",
    )

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        detokenizers: DetokenizerFactory | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.index = index
        self.finished = False
        self._params = params
        self._tokenizer = tokenizer
        self._eos = eos_token_ids if not params.ignore_eos else frozenset[int]()
        wants_text = detokenizers is not None and (params.detokenize or bool(params.stop))
        self._detokenizer = (
            detokenizers.make(skip_special_tokens=params.skip_special_tokens)
            if detokenizers is not None and wants_text
            else None
        )
        self._scanner = (
            StopStringScanner(params.stop, include_in_output=params.include_stop_str_in_output)
            if params.stop
            else None
        )
        self._num_tokens = 0
        self._cumulative: float | None = None

    def resume(self, ids: Sequence[int]) -> CompletionOutput:
        """Takes tokens generated elsewhere; what they add was delivered there.

        Raises ParameterError when they hold a whole stop string: that completion is finished.
        """
        out = CompletionOutput(self.index)
        for token_id in ids:  # one by one, as they were delivered
            part = self.advance([token_id], FINISH_NONE, -1)
            if part.finish_reason is not None:
                raise ParameterError(
                    "resume_token_ids",
                    f"entry {self.index} holds the stop string {part.stop_reason!r}; send null "
                    f"for a finished completion",
                )
            out.text += part.text
            out.token_ids += part.token_ids
        return out

    def advance(
        self,
        ids: list[int],
        finish: int,
        stop_token: int,
        logprobs: Sequence[CoreLogprobs] = (),
    ) -> CompletionOutput:
        """What these tokens add. A stop string may end the completion before the core does."""
        out = CompletionOutput(self.index, token_ids=ids)
        if self._scanner is not None:
            self._scan(self._scanner, ids, finish, stop_token, out)
        elif self._detokenizer is not None:
            out.text = self._detokenizer.push(self._shown(ids, finish, stop_token))
            if finish:
                out.text += self._detokenizer.flush()
        self._num_tokens += len(out.token_ids)
        if logprobs:
            self._add_logprobs(out, logprobs)
        if finish and out.finish_reason is None:
            out.finish_reason = FINISH_REASONS[finish]
            if finish == FINISH_STOP and stop_token >= 0 and stop_token not in self._eos:
                out.stop_reason = stop_token
        self.finished = out.finish_reason is not None
        return out

    def _shown(self, ids: list[int], finish: int, stop_token: int) -> list[int]:
        """The ids whose text is shown: a stop token's is not, unless asked for."""
        hidden = finish == FINISH_STOP and not self._params.include_stop_str_in_output
        return ids[:-1] if hidden and ids and ids[-1] == stop_token else ids

    def _scan(
        self,
        scanner: StopStringScanner,
        ids: list[int],
        finish: int,
        stop_token: int,
        out: CompletionOutput,
    ) -> None:
        assert self._detokenizer is not None
        pieces: list[str] = []
        for used, token_id in enumerate(self._shown(ids, finish, stop_token), start=1):
            text = self._detokenizer.push((token_id,))
            if self._num_tokens + used <= self._params.min_tokens:
                pieces.append(text)
                continue
            scanned = scanner.push(text)
            pieces.append(scanned.text)
            if scanned.stop is not None:
                self._stop_at(out, scanned.stop, used, pieces)
                return
        if finish:
            scanned = scanner.push(self._detokenizer.flush())
            pieces += [scanned.text, scanner.flush()]
            if scanned.stop is not None:
                self._stop_at(out, scanned.stop, len(ids), pieces)
                return
        out.text = "".join(pieces)

    def _stop_at(self, out: CompletionOutput, stop: str, used: int, pieces: list[str]) -> None:
        out.text = "".join(pieces)
        out.token_ids = out.token_ids[:used]
        out.finish_reason, out.stop_reason = "stop", stop

    def _add_logprobs(self, out: CompletionOutput, rows: Sequence[CoreLogprobs]) -> None:
        kept = rows[: len(out.token_ids)]
        out.logprobs = [
            logprobs_at(token_id, row, self._tokenizer)
            for token_id, row in zip(out.token_ids, kept, strict=True)
        ]
        self._cumulative = (self._cumulative or 0.0) + sum(row[0] for row in kept)
        out.cumulative_logprob = self._cumulative


def logprobs_at(
    token_id: int, row: CoreLogprobs, tokenizer: Tokenizer | None
) -> LogprobsAtPosition:
    """The chosen token first, then the most likely ones in order."""
    logprob, rank, top_ids, top_logprobs = row
    found = {token_id: Logprob(logprob, rank, _decode_one(token_id, tokenizer))}
    for place, (top_id, top_logprob) in enumerate(zip(top_ids, top_logprobs, strict=True), 1):
        if top_id not in found:
            found[top_id] = Logprob(top_logprob, place, _decode_one(top_id, tokenizer))
    return found


def _decode_one(token_id: int, tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return None
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")
