"""GPU tests: skipped where there is no Hopper GPU or the kernels were not built."""

from __future__ import annotations

import pytest
import torch

from dlcore.ops import kernels


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() and kernels.usable(torch.zeros(1, dtype=torch.bfloat16).cuda()):
        return
    for item in items:
        item.add_marker(pytest.mark.skip(reason="needs a Hopper GPU and libdlcore_kernels.so"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
