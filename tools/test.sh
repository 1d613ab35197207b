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

build() {  # preset, then cmake options
  local preset=$1
  shift
  cmake --preset "$preset" -DDLCORE_WERROR=ON "$@" >/dev/null
  cmake --build "build/$preset" -j "$jobs"
}

stage_cpp() {
  build cpu-release
  ctest --test-dir build/cpu-release --output-on-failure -j "$jobs"
}

stage_asan() {
  build cpu-asan
  ctest --test-dir build/cpu-asan --output-on-failure -j "$jobs"
}

stage_tsan() {
  build cpu-tsan
  ctest --test-dir build/cpu-tsan --output-on-failure -j "$jobs"
}

# RDMA for real, through verbs and through dlslime, on Soft-RoCE in QEMU. Uses what stage cpp built.
stage_rdma() {
  python tests/rdma/run_in_vm.py build/cpu-release/tests/cpp/{transport,engine}_tests \
    --plugin build/cpu-release/libdlcore_dlslime.so --require
}

stage_kernels() {
  command -v nvcc >/dev/null || { echo "nvcc not found: CUDA kernels not compiled here"; return 0; }
  cmake --preset cuda-release >/dev/null
  cmake --build build/cuda-release --target dlcore_kernels -j "$jobs"
}

# Two workers: these tests mostly wait for processes to start. A file stays with one of them.
stage_python() { python -m pytest -q -ra -n 2 --dist loadfile; }

stage_bench() {
  build/cpu-release/bench_scheduler --benchmark_min_time=0.2
  build/cpu-release/bench_radix --benchmark_min_time=0.2
}

run() {
  local name=$1 start=$SECONDS
  printf '\n=== %s\n' "$name"
  # A subshell of its own, so that errexit stays in force inside the stage.
  if bash -euo pipefail -c "$(declare -f); jobs=$jobs; stage_$name"; then
    passed=$((passed + 1))
    printf '=== %s passed (%ss)\n' "$name" $((SECONDS - start))
  else
    failed+=("$name")
    printf '=== %s FAILED (%ss)\n' "$name" $((SECONDS - start))
  fi
}

stages=("$@")
[ "${#stages[@]}" -gt 0 ] || stages=(setup lint types cpp rdma asan tsan kernels python bench)
for stage in "${stages[@]}"; do
  run "$stage"
  # Nothing after a failed setup can mean anything.
  [ "$stage" = setup ] && [ "${#failed[@]}" -gt 0 ] && break
done

printf '\n%d passed, %d failed\n' "$passed" "${#failed[@]}"
[ "${#failed[@]}" -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
