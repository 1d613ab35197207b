"""Options of the Python tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kv-transport", action="append", help="KV moves over these instead of tcp and shm"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kv_transport" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--kv-transport") or ["tcp", "shm"]
        metafunc.parametrize("kv_transport", chosen)
