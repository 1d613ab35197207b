"""Requests that another engine began: what each completion brings along."""

from __future__ import annotations

from collections.abc import Sequence

from dlcore.sampling_params import ParameterError

# One entry a completion: the tokens generated elsewhere, or None where it finished there.
ResumeTokenIds = Sequence[Sequence[int] | None]

FIELD = "resume_token_ids"


def check_resume_count(resume: ResumeTokenIds, num_completions: int) -> None:
    """Raises ParameterError unless there is one entry a completion."""
    if len(resume) != num_completions:
        raise ParameterError(
            FIELD, f"has {len(resume)} entries for {num_completions} completions; send one for each"
        )


def check_resume(resume: ResumeTokenIds, num_completions: int) -> None:
    """Raises ParameterError unless there is one entry a completion and one is unfinished."""
    check_resume_count(resume, num_completions)
    if all(tokens is None for tokens in resume):
        raise ParameterError(FIELD, "every completion is finished (null); nothing is left to do")
