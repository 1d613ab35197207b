#!/usr/bin/env bash
# From a fresh machine to an answer over HTTP: installs dlcore, serves the bundled model, asks it
# a question, and leaves nothing running.   --keep: leave the server in the foreground instead.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh

port=${DLCORE_QUICKSTART_PORT:-8000}
log=$(mktemp)
echo "== starting: dlcore serve --port $port"
.venv/bin/dlcore serve --port "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$log"' EXIT

for _ in $(seq 120); do
  curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.5
done
curl -sf "http://127.0.0.1:$port/health" >/dev/null || { cat "$log" >&2; exit 1; }

ask() {
  printf '\nyou:    %s\ndlcore: ' "$1"
  curl -sfN "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
    -d "{\"model\": \"dlcore-demo\", \"messages\": [{\"role\": \"user\", \"content\": \"$1\"}], \"temperature\": 0, \"max_tokens\": 96}" |
    .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
}
ask "What is dlcore?"
ask "What is 17 + 25?"
ask "Which port does dlcore serve use?"

printf '\nNext: .venv/bin/dlcore chat    .venv/bin/dlcore serve --help    docs/\n'
if [ "${1:-}" = "--keep" ]; then
  echo "Serving on http://127.0.0.1:$port (Ctrl-C stops)"
  wait "$server"
fi
