"""/openapi.json and docs/api.md say what the server does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import openai
from serve.live_server import LiveServer

from dlcore.serve.routes import routes
from dlcore.serve.schemas.chat import ChatRequest

ROOT = Path(__file__).parents[3]


def test_every_route_is_described(server: LiveServer, http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    described = {(m.upper(), p) for p, item in document["paths"].items() for m in item}
    served = {(s.method, s.path.replace(":path", "")) for s in routes(server.ctx)[0]}
    assert described == served


def test_references_resolve(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def visit(node: object) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/components/schemas/") in schemas
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    visit(document)


def test_every_sampling_field_has_its_range_and_description(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["ChatRequest"]["properties"]
    assert set(fields) == set(ChatRequest.__struct_fields__)
    assert all("description" in form for form in fields.values())
    ranged = next(form for form in fields["top_p"]["anyOf"] if form.get("type") == "number")
    assert ranged["maximum"] == 1


def test_the_docs_are_current() -> None:
    check = [sys.executable, str(ROOT / "tools" / "gen_api_docs.py"), "--check"]
    env = {"PYTHONPATH": str(ROOT / "python")}
    assert subprocess.run(check, env=env, check=False, timeout=60).returncode == 0


def test_the_openai_client_lists_models(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.base}/v1", api_key="none")
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
