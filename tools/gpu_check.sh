#!/usr/bin/env bash
# Builds dlcore on a CUDA machine, runs the GPU tests, and prints every figure of
# docs/performance.md. Needs: nvcc, cmake, ninja, a Python with torch and nanobind; no network.
#   tools/gpu_check.sh               everything
#   tools/gpu_check.sh STAGE...      some of: build tests kernels offline online scenarios table
# FRONTENDS=4 serves with as many HTTP processes.
# SHAPES="qwen3-0.6b qwen3-8b" chooses the models, OUT=folder keeps the JSON rows and logs.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-build/gpu-check}
shapes=${SHAPES:-qwen3-0.6b qwen3-8b}
frontends=${FRONTENDS:-1}
models=${TMPDIR:-/tmp}/dlcore-shapes
mkdir -p "$out"
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}"

stage_build() {
  cmake --preset cuda-release -DPython_EXECUTABLE="$(command -v "$python")" >"$out/cmake.log"
  cmake --build build/cuda-release -j "$(nproc)" >"$out/build.log" || { tail -40 "$out/build.log"; return 1; }
  find build/cuda-release -name '_core*.so' -o -name 'libdlcore_kernels.so' | while read -r library; do
    ln -sf "$PWD/$library" python/dlcore/
  done
}

stage_tests() { "$python" -m pytest -q -ra --import-mode=importlib tests/gpu; }

stage_kernels() {
  "$python" tools/bench_kernels.py
  "$python" tools/bench_prefill.py --tokens 8192 --rounds 1
}

stage_offline() {
  for shape in $shapes; do
    "$python" tools/shapes.py "$shape" "$models/$shape" >/dev/null
    "$python" -m dlcore bench "$models/$shape" --load-format dummy --no-enable-prefix-caching \
      --max-model-len 8192 --json "$out/offline-$shape.json" 2>"$out/offline-$shape.log" ||
      { tail -30 "$out/offline-$shape.log"; return 1; }
  done
}

serve_and_load() { # name of its log, shape, numbers of clients, flags of the server
  local log=$out/serve-$1.log shape=$2 counts=$3 port=$((20000 + RANDOM % 20000)) started=$SECONDS
  shift 3
  "$python" -m dlcore serve "$models/$shape" --load-format dummy --port "$port" \
    --served-model-name m --no-enable-prefix-caching --max-model-len 8192 --no-access-log --frontends "$frontends" \
    "$@" >"$log" 2>&1 &
  local server=$!
  for _ in $(seq 600); do
    curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
    kill -0 "$server" 2>/dev/null || { tail -30 "$log"; return 1; }
    sleep 0.2
  done
  echo "ready after $((SECONDS - started)) s"
  for clients in $counts; do
    "$python" tools/loadgen.py --base "http://127.0.0.1:$port" --model m --procs 8 \
      --concurrency "$clients" --requests $((clients * 4 < 16 ? 16 : clients * 4))
  done
  kill -TERM "$server"
  wait "$server" || true
}

stage_scenarios() {
  for shape in $shapes; do
    "$python" tools/shapes.py "$shape" "$models/$shape" >/dev/null
    echo "-- $shape"
    "$python" tools/bench_scenarios.py "$models/$shape" --json "$out/scenarios-$shape.json" 2>"$out/scenarios-$shape.log"
  done
}

stage_online() {
  for shape in $shapes; do
    "$python" tools/shapes.py "$shape" "$models/$shape" >/dev/null
    echo "-- $shape over HTTP"
    serve_and_load "$shape" "$shape" "1 16 64 256" | tee "$out/online-$shape.log"
    local flags=(--max-num-seqs 216) # with some waiting those that run are quicker: TPOT for TTFT
    [ "$shape" != qwen3-0.6b ] || flags=(--frontends 2) # one is close to full with so small a model
    local name=$shape${flags[0]}-${flags[1]}
    serve_and_load "$name" "$shape" 256 "${flags[@]}" | tee "$out/online-$name.log"
  done
}

# All that the stages above left in $out, beside vLLM's figures, targets and floors.
stage_table() { "$python" tools/performance_table.py "$out"; }

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
date -u +%F
stages=("$@")
[ "${#stages[@]}" -gt 0 ] || stages=(build tests kernels offline online scenarios table)
for stage in "${stages[@]}"; do
  echo "=== $stage"
  start=$SECONDS
  "stage_$stage"
  echo "=== $stage done ($((SECONDS - start))s)"
done
