"""`dlcore top` reads any server's /metrics."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from dlcore.commands.top import Sample, bar, mean, rate, top

LABELS = 'model_name="m",engine="0"'


class MetricsHandler(BaseHTTPRequestHandler):
    """Serves metrics that grow by 50 generated tokens a reading; needs the key "k"."""

    readings = 0

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != "Bearer k":
            self.send_error(401)
            return
        type(self).readings += 1
        body = (
            f"# TYPE dlcore:num_requests_running gauge\n"
            f"dlcore:num_requests_running{{{LABELS}}} 3.0\n"
            f"# TYPE dlcore:kv_cache_usage_perc gauge\n"
            f"dlcore:kv_cache_usage_perc{{{LABELS}}} 0.25\n"
            f"# TYPE dlcore:generation_tokens counter\n"
            f"dlcore:generation_tokens_total{{{LABELS}}} {50 * self.readings}\n"
        ).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), MetricsHandler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


def test_shows_load_and_caches(server: str) -> None:
    arguments = ["--url", server, "--api-key", "k", "--interval", "0.05", "--count", "2"]
    result = CliRunner().invoke(top, arguments)
    assert result.exit_code == 0, result.output
    assert "3 running" in result.output
    assert "25.0%" in result.output


def test_a_missing_key_and_a_dead_server_are_one_clear_line(server: str) -> None:
    refused = CliRunner().invoke(top, ["--url", server])
    assert refused.exit_code == 1
    assert "--api-key" in refused.output
    dead = CliRunner().invoke(top, ["--url", "http://127.0.0.1:9"])
    assert dead.exit_code == 1
    assert "cannot reach" in dead.output


def test_rates_and_means_are_of_the_interval() -> None:
    before = Sample(10.0, {"x_total": 5.0, "h_sum": 1.0, "h_count": 2.0})
    after = Sample(12.0, {"x_total": 9.0, "h_sum": 4.0, "h_count": 4.0})
    assert rate(before, after, "x_total") == 2.0
    assert mean(before, after, "h") == 1.5
    assert mean(after, after, "h") is None


def test_bars_never_overflow() -> None:
    assert {len(bar(x)) for x in (-1.0, 0.0, 0.5, 1.0, 7.0)} == {40}
