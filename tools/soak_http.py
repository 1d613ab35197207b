"""Does the HTTP server's memory stay flat? Sends a mix of requests and watches its resident size.

    python tools/soak_http.py [--requests 50000] [--max-growth-mib 16] [--engine null|fake|real]

Whole and streamed answers, wrong requests, clients that leave half way, stored responses. The
first fifth warms up; from there to the end the size may grow by `--max-growth-mib`. The engine is
the real one without a model ("null"), the tests' fake one, or the bundled model ("real").
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz_http import SERVERS, start_server

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def some_request(rng: random.Random) -> tuple[str, dict[str, object], bool]:
    """(path, body, whether to leave before the answer is complete)."""
    tokens = rng.randrange(1, 60)
    kinds: list[tuple[str, dict[str, object], bool]] = [
        (CHAT, {"messages": MESSAGES, "max_tokens": tokens}, False),
        (CHAT, {"messages": MESSAGES, "max_tokens": tokens, "stream": True}, False),
        (CHAT, {"messages": MESSAGES, "max_tokens": 400, "stream": True}, True),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "max_tokens": tokens}, False),
        (CHAT, {"messages": MESSAGES, "temperature": -1}, False),
        (
            CHAT,
            {"messages": MESSAGES, f"unknown_{rng.randrange(10**9)}": 1, "max_tokens": 1},
            False,
        ),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": tokens}, False),
        ("/v1/responses", {"input": "x" * 500, "max_output_tokens": tokens}, False),
        (f"/nothing/{rng.randrange(10**9)}", {}, False),
    ]
    return rng.choice(kinds)


async def client(port: int, requests: int, seed: int) -> None:
    """One connection after another; each carries requests until one is left half way."""
    rng = random.Random(seed)
    left = requests
    while left:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        leave = False
        while left and not leave:
            left -= 1
            path, fields, leave = some_request(rng)
            body = json.dumps(fields).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await (reader.read(200) if leave else _whole_answer(reader))
        writer.transport.abort()


async def _whole_answer(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head:
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
        return
    length = next(x for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))


async def soak(process: subprocess.Popen[str], port: int, requests: int, clients: int) -> float:
    """MiB grown after the first fifth."""
    sizes = []
    for part in range(5):
        share = requests // 5 // clients
        await asyncio.gather(*(client(port, share, part * clients + i) for i in range(clients)))
        await asyncio.sleep(0.5)
        sizes.append(resident_mib(process.pid))
        sys.stdout.write(f"{(part + 1) * share * clients} requests: {sizes[-1]:.1f} MiB\n")
        sys.stdout.flush()
    return sizes[-1] - sizes[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Watch the HTTP server's memory")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--max-growth-mib", type=float, default=16.0)
    parser.add_argument("--engine", choices=tuple(SERVERS), default="null")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        process, url = start_server(data_dir, args.engine)
        try:
            grown = asyncio.run(
                soak(process, int(url.rsplit(":", 1)[1]), args.requests, args.clients)
            )
        finally:
            process.terminate()
            process.wait(30)
    sys.stdout.write(f"grown by {grown:.1f} MiB\n")
    return 0 if grown <= args.max_growth_mib else 1


if __name__ == "__main__":
    sys.exit(main())
