"""Runs the HTTP server over the fake engine, as `dlcore serve` would over a real one."""

from __future__ import annotations

import argparse
import sys

from serve.fake_client import FakeEngine

from dlcore.serve.config import ServeConfig
from dlcore.serve.http import run_server


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--data-dir", default="~/.local/share/dlcore")
    args = parser.parse_args()

    async def make_engine() -> FakeEngine:
        return FakeEngine(delay=args.delay)

    config = ServeConfig(port=args.port, access_log=False, data_dir=args.data_dir)
    return run_server(config, make_engine)


if __name__ == "__main__":
    sys.exit(main())
