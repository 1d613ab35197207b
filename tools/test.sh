#!/usr/bin/env bash
# Installs everything and runs every check: what CI runs, what a contributor runs.
#   tools/test.sh            all stages
#   tools/test.sh STAGE...   some of: setup lint types cpp rdma asan tsan kernels python bench
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
jobs=$(nproc)
failed=()
passed=0

stage_setup() { tools/setup.sh --dev; }

stage_lint() {
  python tools/check_layers.py
  ruff check .
  ruff format --check .
  git ls-files 'cpp/**/*.h' 'cpp/**/*.cc' 'tests/cpp/**/*.cc' 'tools/*.cc' | xargs clang-format --dry-run -Werror
}

stage_types() { mypy; }

# Twice as many tests at once as there are cores: they mostly wait for deadlines.
run_tests() { ctest --test-dir "build/$1" --output-on-failure -j $((2 * jobs)); }

build() {  # preset, then cmake options
  local preset=$1
  shift
  cmake --preset "$preset" -DDLCORE_WERROR=ON "$@" >/dev/null
  cmake --build "build/$preset" -j "$jobs"
}

stage_cpp() {
  build cpu-release
  run_tests cpu-release
}

stage_asan() {
  build cpu-asan
  run_tests cpu-asan
}

stage_tsan() {
  build cpu-tsan
  run_tests cpu-tsan
}

# RDMA for real, through verbs and through dlslime, on Soft-RoCE in QEMU. Uses what stage cpp built.
stage_rdma() {
  python tests/rdma/run_in_vm.py build/cpu-release/tests/cpp/{transport,engine}_tests \
    --plugin build/cpu-release/libdlcore_dlslime.so --require
}

# Setup has compiled them where nvcc is; this says so, and compiles what changed since.
stage_kernels() {
  command -v nvcc >/dev/null || { echo "nvcc not found: CUDA kernels not compiled here"; return 0; }
  cmake --preset cpu-release -DDLCORE_WERROR=ON -DDLCORE_CUDA=ON >/dev/null
  cmake --build build/cpu-release --target dlcore_kernels -j "$jobs"
  local objects=build/cpu-release/cpp/kernels/CMakeFiles/dlcore_kernels.dir
  python tools/check_sass.py "$objects"/{prefill_attention,tile_linear,project_heads,wide_linear,linear_argmax}.cu.o
}

# Two workers: these tests mostly wait for processes to start. A file stays with one of them.
stage_python() { python -m pytest -q -ra -n 2 --dist loadfile; }

stage_bench() {
  build/cpu-release/bench_scheduler --benchmark_min_time=0.2
  build/cpu-release/bench_radix --benchmark_min_time=0.2
}

run() {  # stage
  local start=$SECONDS verdict=passed
  printf '\n=== %s\n' "$1"
  # A shell of its own, so that errexit stays in force inside the stage.
  bash -euo pipefail -c "$(declare -f); jobs=$jobs; stage_$1" || verdict=FAILED
  printf '=== %s %s (%ss)\n' "$1" "$verdict" $((SECONDS - start))
  [ "$verdict" = passed ]
}

count() {  # stage, its exit status
  if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed+=("$1"); fi
}

# The emulated machine leaves part of two cores idle, and so do tests that wait for deadlines: it runs
# beside the stage that follows (asan; those in Python suffer from it), and is shown after that.
rdma_pid=""
begin_rdma() {
  rdma_log=$(mktemp)
  trap '[ -z "$rdma_pid" ] || kill -- -"$rdma_pid"; rm -f "$rdma_log"' EXIT
  set -m  # a process group of its own, for the trap to end
  run rdma >"$rdma_log" 2>&1 </dev/null &
  rdma_pid=$!
  set +m
}

finish_rdma() {
  [ -n "$rdma_pid" ] || return 0
  local status=0
  wait "$rdma_pid" || status=$?
  rdma_pid=""
  cat "$rdma_log"
  count rdma "$status"
}

stages=("$@")
[ "${#stages[@]}" -gt 0 ] || stages=(setup lint types cpp rdma asan tsan kernels python bench)
for stage in "${stages[@]}"; do
  if [ "$stage" = rdma ]; then
    begin_rdma
    continue
  fi
  status=0
  run "$stage" || status=$?
  count "$stage" "$status"
  finish_rdma
  # Nothing after a failed setup can mean anything.
  [ "$stage" = setup ] && [ "$status" != 0 ] && break
done
finish_rdma

printf '\n%d passed, %d failed\n' "$passed" "${#failed[@]}"
[ "${#failed[@]}" -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
