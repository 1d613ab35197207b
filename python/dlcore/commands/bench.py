"""`dlcore bench`: an engine in this process, or a server behind a URL."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
import httpx
from rich.console import Console
from rich.table import Table

import dlcore
from dlcore.commands.flags import (
    SectionedCommand,
    config_file_option,
    engine_config,
    engine_flags,
    model_argument,
)
from dlcore.version import VERSION

if TYPE_CHECKING:
    from dlcore.bench.http_load import LoadResult
    from dlcore.bench.offline import Figure

PROBE_TIMEOUT_S = 10.0
TIME_COLUMNS = {
    "TTFT": "ttft_p50",
    "p99": "ttft_p99",
    "TPOT": "tpot_p50",
    "p99 ": "tpot_p99",
    "ITL": "itl_p50",
    "p99  ": "itl_p99",
}


def _int_list(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(int(part) for part in str(value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,8,64") from None
    if min(numbers) < 1:
        raise click.BadParameter("numbers must be at least 1")
    return numbers


@click.command(cls=SectionedCommand)
@model_argument
@click.option(
    "--batch-sizes", callback=_int_list, help="Offline: batches to time. Default: 1,8,64,256."
)
@click.option("--input-len", type=click.IntRange(1), help="Prompt tokens.")
@click.option("--output-len", type=click.IntRange(2), help="Answer tokens.")
@click.option("--repeats", type=click.IntRange(1), help="Offline: runs per figure (the median).")
@click.option("--url", help="Measure this running server instead, e.g. http://127.0.0.1:8000.")
@click.option("--concurrency", callback=_int_list, default="1,16,64", show_default=True,
              help="With --url: numbers of clients, one run each.")  # fmt: skip
@click.option("--requests", type=click.IntRange(1), help="With --url: requests a run.")
@click.option("--processes", type=click.IntRange(1), default=4, show_default=True,
              help="With --url: processes the clients are spread over.")  # fmt: skip
@click.option("--api-key", envvar="DLCORE_API_KEY", help="With --url: the server's key.")
@click.option("--vocab-size", type=click.IntRange(2), default=256, show_default=True,
              help="With --url: prompts are random ids below this.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Also write the figures here.")  # fmt: skip
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path),
              help="Also write latency.png and throughput.png to this folder.")  # fmt: skip
@engine_flags
@config_file_option
def bench(model: str | None, **flags: Any) -> int:
    """Measure latency and throughput of MODEL, or of a running server with --url.

    Without --url: time per output token at several batch sizes, time to the first token,
    prefill and mixed throughput, all in this process. --load-format dummy times a model whose
    weights you do not have. With --url: streaming clients that each send the next request
    when the last has ended; works with any OpenAI-compatible server.

    \b
    Examples:
      dlcore bench
      dlcore bench /models/Qwen3-8B --load-format dummy --json row.json --plots plots/
      dlcore bench --url http://127.0.0.1:8000 --concurrency 1,16,64,256
    """
    plots = _load_plots() if flags["plots"] is not None else None
    if flags["url"] is not None:
        return _bench_url(flags, plots)
    return _bench_offline(model, flags, plots)


def _bench_offline(model: str | None, flags: dict[str, Any], plots: ModuleType | None) -> int:
    offline = import_module("dlcore.bench.offline")
    console = Console(stderr=True)
    config = engine_config(model, flags)
    before = time.perf_counter()
    with dlcore.LLM.from_config(config) as llm:
        start = offline.Figure("start", time.perf_counter() - before, "s", "load and capture")
        plan = offline.CPU_PLAN if llm.device == "cpu" else offline.OfflinePlan()
        names = ("batch_sizes", "input_len", "output_len", "repeats")
        plan = replace(plan, **{n: flags[n] for n in names if flags[n] is not None})
        plan = plan.fitted(
            max_model_len=llm.max_model_len,
            max_num_seqs=llm.max_num_seqs,
            kv_tokens=llm.kv_tokens,
        )
        with console.status("measuring ...") as status:
            figures = [start, *offline.OfflineBench(llm, plan).run(status.update)]
        report = {"model": llm.model_name, "device": llm.device, "plan": asdict(plan)}
    _print_figures(figures, f"{report['model']} on {report['device']}")
    _write_json(flags["json_file"], report | {"figures": [asdict(f) for f in figures]})
    if plots is not None:
        _plot_offline(plots, flags["plots"], figures)
    return 0


def _bench_url(flags: dict[str, Any], plots: ModuleType | None) -> int:
    load = _load_optional("dlcore.bench.http_load", "aiohttp")
    url = flags["url"].rstrip("/").removesuffix("/v1")
    spec = load.LoadSpec(
        url=url,
        model=_served_model(url, flags["api_key"]),
        concurrency=1,
        requests=1,
        input_len=flags["input_len"] or 512,
        output_len=flags["output_len"] or 256,
        vocab_size=flags["vocab_size"],
        processes=flags["processes"],
        api_key=flags["api_key"],
    )
    rows: list[LoadResult] = []
    with Console(stderr=True).status("measuring ...") as status:
        for clients in flags["concurrency"]:
            status.update(f"{clients} clients")
            requests = flags["requests"] or max(8, 4 * clients)
            rows.append(load.run_load(replace(spec, concurrency=clients, requests=requests)))
    _print_rows(rows, f"{spec.model} at {url}, {spec.input_len} in, {spec.output_len} out")
    settings = {k: v for k, v in asdict(spec).items() if k not in ("api_key", "concurrency")}
    _write_json(flags["json_file"], {"spec": settings, "rows": [asdict(r) for r in rows]})
    if plots is not None:
        _plot_rows(plots, flags["plots"], rows)
    return 1 if any(row.failed for row in rows) else 0


def _served_model(url: str, api_key: str | None) -> str:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=PROBE_TIMEOUT_S)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"no server answers at {url}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise click.ClickException(f"{url}/v1/models is not an OpenAI server's") from error


def _load_plots() -> ModuleType:
    return _load_optional("dlcore.bench.plots", "matplotlib")


def _load_optional(module: str, package: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise click.ClickException(f"this needs {package}: pip install 'dlcore[bench]'") from error


def _print_figures(figures: Sequence[Figure], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("figure", "value", "unit", "load"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for figure in figures:
        table.add_row(figure.name, f"{figure.value:,.2f}", figure.unit, figure.how)
    Console().print(table)


def _print_rows(rows: Sequence[LoadResult], title: str) -> None:
    console = Console()
    table = Table(title=title, title_justify="left", caption="times in ms", caption_justify="left")
    for name in ("clients", "failed", "tok/s", *TIME_COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = [getattr(row, name) for name in TIME_COLUMNS.values()]
        cells = ["-" if t is None else f"{t:,.1f}" for t in times]
        head = (str(row.concurrency), f"{row.failed}/{row.ok + row.failed}")
        table.add_row(*head, f"{row.output_tokens_per_s:,.0f}", *cells)
    console.print(table)
    for row in rows:
        for error in row.errors:
            console.print(f"{row.concurrency} clients: {error}", style="red", markup=False)


def _write_json(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        head = {"dlcore": VERSION, "machine": platform.machine()}
        path.write_text(json.dumps(head | report, indent=2) + "\n", encoding="utf-8")


def _plot_offline(plots: ModuleType, folder: Path, figures: Sequence[Figure]) -> None:
    tpot = [
        (int(f.name.removeprefix("tpot_b")), f.value)
        for f in figures
        if f.name.startswith("tpot_b")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    plots.plot_latency(folder / "latency.png", "batch size", {"time per output token": tpot})
    decode = [(batch, 1e3 * batch / ms) for batch, ms in tpot]
    plots.plot_throughput(folder / "throughput.png", "batch size", {"decode": decode})


def _plot_rows(plots: ModuleType, folder: Path, rows: Sequence[LoadResult]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {"TTFT p50": "ttft_p50", "TPOT p50": "tpot_p50", "ITL p99": "itl_p99"}
    latency = {
        label: [(r.concurrency, value) for r in rows if (value := getattr(r, name)) is not None]
        for label, name in names.items()
    }
    known = {label: points for label, points in latency.items() if points}
    plots.plot_latency(folder / "latency.png", "clients", known)
    speed = [(r.concurrency, r.output_tokens_per_s) for r in rows]
    plots.plot_throughput(folder / "throughput.png", "clients", {"output": speed})
