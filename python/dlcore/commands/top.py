"""`dlcore top`: a live view of a running server, made of its /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click
import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

PREFIX = "dlcore:"
WIDTH = 40  # of the bars, in characters


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's metrics at one moment: name without prefix -> sum over label sets."""

    at: float
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values.get(name, 0.0)


def read_sample(client: httpx.Client, now: Callable[[], float] = time.monotonic) -> Sample:
    """Raises click.ClickException when the server does not answer or refuses the key."""
    try:
        response = client.get("/metrics")
    except httpx.HTTPError as error:
        raise click.ClickException(f"cannot reach {client.base_url}: {error}") from error
    if response.status_code == 401:
        raise click.ClickException("the server asks for an API key: pass --api-key")
    if response.status_code != 200:
        raise click.ClickException(f"{client.base_url} answered {response.status_code}")
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and "le" not in sample.labels:
                name = sample.name.removeprefix(PREFIX)
                values[name] = values.get(name, 0.0) + sample.value
    return Sample(now(), values)


def rate(before: Sample, after: Sample, name: str) -> float:
    """Growth per second."""
    return (after[name] - before[name]) / max(after.at - before.at, 1e-9)


def mean(before: Sample, after: Sample, histogram: str) -> float | None:
    """Mean of what a histogram saw between two samples; None when it saw nothing."""
    count = after[f"{histogram}_count"] - before[f"{histogram}_count"]
    if count <= 0:
        return None
    return (after[f"{histogram}_sum"] - before[f"{histogram}_sum"]) / count


def view(before: Sample, after: Sample, title: str) -> Table:
    """One screen."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column()
    running, waiting = after["num_requests_running"], after["num_requests_waiting"]
    table.add_row("requests", f"{running:.0f} running", f"{waiting:.0f} waiting")
    for label, name in (("generated", "generation_tokens"), ("prompt", "prompt_tokens")):
        total = after[f"{name}_total"]
        speed = rate(before, after, f"{name}_total")
        table.add_row(label, f"{speed:,.0f} tokens/s", f"{total:,.0f} in all")
    for label, name in (
        ("first token", "time_to_first_token_seconds"),
        ("between tokens", "inter_token_latency_seconds"),
        ("whole request", "e2e_request_latency_seconds"),
    ):
        seconds = mean(before, after, name)
        table.add_row(label, "-" if seconds is None else f"{1e3 * seconds:,.1f} ms", "mean")
    usage = after["kv_cache_usage_perc"]
    table.add_row("KV cache", f"{usage:.1%}", bar(usage))
    queries = rate(before, after, "prefix_cache_queries_total")
    hits = rate(before, after, "prefix_cache_hits_total")
    share = hits / queries if queries > 0 else 0.0
    table.add_row("prefix cache", f"{share:.1%}" if queries > 0 else "-", bar(share))
    table.add_row("preemptions", f"{after['num_preemptions_total']:,.0f}", "in all")
    return table


def bar(share: float) -> str:
    filled = round(WIDTH * min(max(share, 0.0), 1.0))
    return "█" * filled + "░" * (WIDTH - filled)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--api-key", envvar="DLCORE_API_KEY", help="Only if the server asks for one.")
@click.option("--interval", default=1.0, show_default=True, help="Seconds between readings.")
@click.option("--count", default=0, help="Stop after this many readings (0 = until Ctrl-C).")
def top(url: str, api_key: str | None, interval: float, count: int) -> None:
    """Watch a running server: load, speed, latency, caches.

    \b
    Example:
      dlcore top --url http://127.0.0.1:8000
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    console = Console()
    with httpx.Client(base_url=url, headers=headers, timeout=5.0) as client:
        before = read_sample(client)
        readings = 0
        with Live(view(before, before, url), console=console, auto_refresh=False) as live:
            while count == 0 or readings < count:
                time.sleep(interval)
                after = read_sample(client)
                live.update(view(before, after, url), refresh=True)
                before = after
                readings += 1
