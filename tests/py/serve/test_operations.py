"""Keys, limits, metrics: what an operator relies on."""

from __future__ import annotations

import base64
import json
import logging
import re
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from serve.fake_client import FakeEngine
from serve.live_server import LiveServer, live_server
from starlette.testclient import TestClient

from dlcore.config import ConfigError
from dlcore.sampling_params import SamplingParams
from dlcore.serve.app import build_app
from dlcore.serve.auth import ApiKeys, load_api_keys
from dlcore.serve.config import ServeConfig
from dlcore.serve.context import make_context
from dlcore.serve.limits import Limits
from dlcore.serve.routes import routes
from dlcore.serve.tracing import Tracing

TEXT = "/v1/completions"
ROOT = Path(__file__).parents[3]


def test_every_route_but_liveness_needs_a_key() -> None:
    with live_server(api_key=("one", "two")) as server:
        listed = [(spec.path, spec.method) for spec in routes(server.ctx)[0]]
        assert len(listed) > 8
        for path, method in listed:
            url = server.base + path.replace("{", "").replace("}", "").replace(":path", "")
            answer = httpx.request(method, url)
            assert answer.status_code == (200 if path == "/health" else 401), (method, path)
        assert httpx.get(server.base + "/not/a/route").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer two"}, 200),
        ({"x-api-key": "two"}, 200),
        ({"x-api-key": "wrong", "authorization": "Bearer one"}, 200),
        ({"authorization": "Basic " + base64.b64encode(b"me:two").decode()}, 200),
        ({"authorization": "Basic " + base64.b64encode(b"two:").decode()}, 401),
        ({"authorization": "Basic !"}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "one"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"x-api-key": "on"}, 401),
        ({"x-api-key": "onee"}, 401),
    ],
)
def test_a_key_is_taken_from_either_header(headers: dict[str, str], status: int) -> None:
    with live_server(api_key=("one", "two")) as server:
        assert httpx.get(server.base + "/v1/models", headers=headers).status_code == status


def test_keys_come_from_flags_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# team a\nfrom-file\n\n")
    assert load_api_keys(["flag"], str(file), "env1, env2") == ("flag", "env1", "env2", "from-file")
    with pytest.raises(ValueError, match="api_key_file"):
        load_api_keys([], str(tmp_path / "missing"), None)
    assert ApiKeys([]).name_of(b"") is None


def test_each_key_has_its_own_rate() -> None:
    with live_server(api_key=("a", "b"), requests_per_minute=2) as server:
        url = server.base + "/v1/models"
        codes = [httpx.get(url, headers={"x-api-key": "a"}).status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        assert httpx.get(url, headers={"x-api-key": "b"}).status_code == 200


def test_a_rate_refills_with_time() -> None:
    now = [0.0]
    limits = Limits(60, 0, clock=lambda: now[0])
    assert all(limits.take("k") is None for _ in range(60))
    refusal = limits.take("k")
    assert refusal is not None
    assert 0.9 < refusal[0] <= 1.0
    now[0] += 1.0
    assert limits.take("k") is None
    assert limits.take("k") is not None


def test_a_key_may_run_so_many_at_once() -> None:
    engine = FakeEngine(delay=0.3)
    with live_server(engine, max_concurrent_requests=1) as server, httpx.Client() as client:
        body = {"prompt": "a", "stream": True}
        with client.stream("POST", server.base + TEXT, json=body):
            refused = httpx.post(server.base + TEXT, json={"prompt": "a"})
            assert refused.status_code == 429
            assert "retry-after" in refused.headers
        assert server.wait_idle()


def test_a_request_beyond_its_time_is_a_504_and_ends() -> None:
    with live_server(FakeEngine(delay=0.2), request_timeout=0.5) as server:
        body = {"prompt": "a", "ignore_eos": True, "max_tokens": 500}
        assert httpx.post(server.base + TEXT, json=body, timeout=20).status_code == 504
        streamed = httpx.post(server.base + TEXT, json={**body, "stream": True}, timeout=20)
        assert "timeout_error" in streamed.text
        assert server.wait_idle(5)


def test_a_stream_beyond_its_size_ends_with_an_error() -> None:
    with live_server(max_stream_bytes=5000) as server:
        body = {"prompt": "a", "ignore_eos": True, "max_tokens": 2000, "stream": True}
        answer = httpx.post(server.base + TEXT, json=body)
        assert len(answer.content) < 6000
        assert "stream_too_big" in answer.text
        assert server.wait_idle(5)


def test_metrics_have_the_names_dashboards_look_for(server: LiveServer, http: httpx.Client) -> None:
    http.post(TEXT, json={"prompt": "a", "max_tokens": 50, "stream": True})
    text = http.get("/metrics").text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name in (
        "num_requests_running", "num_requests_waiting", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "time_per_output_token_seconds",
        "e2e_request_latency_seconds", "kv_cache_usage_perc",
        "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens",
        "generation_tokens", "request_success", "request_time_per_output_token_seconds",
    ):  # fmt: skip
        assert f"dlcore:{name}" in families, name
        assert families[f"dlcore:{name}"].samples[0].labels["model_name"] == "fake"
    ttft = {s.name: s.value for s in families["dlcore:time_to_first_token_seconds"].samples
            if "bucket" not in s.name}  # fmt: skip
    assert ttft["dlcore:time_to_first_token_seconds_count"] >= 1


def test_the_access_log_is_json_with_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    with live_server(FakeEngine(), log_requests=True) as server:
        caplog.set_level(logging.INFO, "dlcore.access")
        headers = {"x-request-id": "abc-1"}
        answer = httpx.post(
            server.base + TEXT, json={"prompt": "abc", "max_tokens": 7}, headers=headers
        )
        assert answer.headers["x-request-id"] == "abc-1"
        odd = httpx.get(server.base + "/health", headers={"x-request-id": "bad id\t<"})
        assert odd.headers["x-request-id"] != "bad id\t<"
    lines = [json.loads(r.message) for r in caplog.records if r.name == "dlcore.access"]
    line = next(item for item in lines if item["request_id"] == "abc-1")
    assert line["status"] == 200
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 7)
    assert line["finish_reason"] == "length"


def test_models_are_listed_under_their_served_names() -> None:
    with live_server(served_model_name=("big", "org/alias")) as server:
        listed = httpx.get(server.base + "/v1/models").json()
        assert [m["id"] for m in listed["data"]] == ["big", "org/alias"]
        assert listed["data"][0]["max_model_len"] == 4096
        assert httpx.get(server.base + "/v1/models/org/alias").json()["id"] == "org/alias"
        assert httpx.get(server.base + "/v1/models/other").status_code == 404


def test_browsers_of_allowed_origins_may_call() -> None:
    with live_server(allowed_origins=("https://ui.example",), api_key=("k",)) as server:
        headers = {"origin": "https://ui.example", "access-control-request-method": "POST"}
        answer = httpx.options(server.base + TEXT, headers=headers)
        assert answer.headers["access-control-allow-origin"] == "https://ui.example"
        key = {"origin": "https://ui.example", "x-api-key": "k"}
        for sent in (key, {"origin": "https://ui.example"}):  # a page can read its errors
            answer = httpx.post(server.base + TEXT, json={"n": 0}, headers=sent)
            assert answer.status_code in (400, 401)
            assert answer.headers["access-control-allow-origin"] == "https://ui.example"
        other = httpx.options(server.base + TEXT, headers={**headers, "origin": "https://evil"})
        assert "access-control-allow-origin" not in other.headers


def test_what_a_request_leaves_open_is_as_the_model_advises() -> None:
    engine = FakeEngine()
    engine.defaults = SamplingParams(temperature=0.6, top_k=20)
    with live_server(engine) as server:
        httpx.post(server.base + TEXT, json={"prompt": "a", "temperature": None, "top_p": 0.5})
        params = engine.seen[-1][1]
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.5)
        httpx.post(server.base + TEXT, json={"prompt": "a", "temperature": 0, "top_k": 0})
        assert (engine.seen[-1][1].temperature, engine.seen[-1][1].top_k) == (0, 0)


def test_tls_is_served(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    files = {"ssl_keyfile": str(tmp_path / "key.pem"), "ssl_certfile": str(tmp_path / "cert.pem")}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with live_server(**files) as server:
        url = f"https://127.0.0.1:{server.port}"
        answer = httpx.post(url + TEXT, json={"prompt": "a", "stream": True}, verify=context)
        assert answer.status_code == 200
        assert "[DONE]" in answer.text
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{server.port}/health")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"port": 70000}, "port"),
        ({"ssl_certfile": "a"}, "ssl_certfile"),
        ({"ssl_certfile": "/nonexistent", "ssl_keyfile": "/nonexistent"}, "ssl_certfile"),
        ({"ssl_ca_certs": __file__}, "ssl_ca_certs"),
        ({"grpc_port": 1, "ssl_keyfile_password": "x"}, "ssl_keyfile_password"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"request_timeout": float("nan")}, "request_timeout"),
        ({"header_timeout": float("inf")}, "header_timeout"),
        ({"tool_call_parser": "nonsense"}, "tool_call_parser"),
        ({"reasoning_parser": "nonsense"}, "reasoning_parser"),
        ({"chat_template": "/nonexistent"}, "chat_template"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        make_context(FakeEngine(), ServeConfig(**settings))
    assert wrong.value.field == field


def test_a_template_file_replaces_the_models(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    with live_server(chat_template=str(file), trust_request_chat_template=True) as server:
        url = server.base + "/v1/chat/completions"
        messages = [{"role": "user", "content": "hi"}]
        httpx.post(url, json={"messages": messages})
        assert server.engine.tokenizer.decode(server.engine.seen[-1][0]) == "[hi]"
        own = {"messages": messages, "chat_template": "{{ messages[0].content }}!"}
        httpx.post(url, json=own)
        assert server.engine.tokenizer.decode(server.engine.seen[-1][0]) == "hi!"
        for bad in (
            "{{",
            "{{ ''.__class__.__mro__ }}",
            "{{ 1 / 0 }}",
            "{{ raise_exception('x') }}",
        ):
            assert httpx.post(url, json={**own, "chat_template": bad}).status_code == 400


def test_a_trace_joins_the_callers(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    engine = FakeEngine()
    ctx = make_context(engine, ServeConfig(access_log=False))
    ctx.tracing = Tracing(SimpleSpanProcessor(exporter))
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with TestClient(build_app(ctx)) as client:
        client.post(TEXT, json={"prompt": "abc", "max_tokens": 5}, headers=headers)
    span = exporter.get_finished_spans()[0]
    assert f"{span.context.trace_id:032x}" == trace
    assert span.name == "POST /v1/completions"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["gen_ai.usage.output_tokens"] == 5


def test_the_dashboard_shows_metrics_that_exist(http: httpx.Client) -> None:
    http.post(TEXT, json={"prompt": "a", "max_tokens": 5})
    served = set(re.findall(r"^(dlcore:\w+|http_\w+)", http.get("/metrics").text, re.MULTILINE))
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    shown = {name for panel in dashboard["panels"] for target in panel.get("targets", [])
             for name in re.findall(r"dlcore:\w+|http_requests_total", target["expr"])}  # fmt: skip
    assert len(shown) > 12
    assert shown <= served
