#!/usr/bin/env bash
# Installs what dlcore needs on a fresh Debian or Ubuntu machine, then dlcore itself into .venv.
#   tools/setup.sh         what serving needs
#   tools/setup.sh --dev   also what building the C++ tests and running every check needs
set -euo pipefail
cd "$(dirname "$0")/.."

dev=0
[ "${1:-}" = "--dev" ] && dev=1

apt_packages=(g++ curl ca-certificates python3 python3-dev python3-venv)
if [ "$dev" = 1 ]; then
  apt_packages+=(ninja-build libgtest-dev libgmock-dev libbenchmark-dev libibverbs-dev libnuma-dev qemu-system-x86 clang-format clang-tidy git chromium redis-server)
fi

missing=()
for package in "${apt_packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "== installing Debian packages: ${missing[*]}"
  sudo=""
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

python=${PYTHON:-python3}
[ -d .venv ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
echo "== installing PyTorch"
# Asked for by version before anything else can pull in another build of it.
.venv/bin/python -c "import torch" 2>/dev/null || "${pip[@]}" "torch==2.13.0"

echo "== building and installing dlcore"
"${pip[@]}" nanobind scikit-build-core cmake ninja numpy
if [ "$dev" = 1 ]; then
  # The dlslime transport is built where the wheel already is.
  "${pip[@]}" "$(sed -n 's/^dlslime = \["\(.*\)"\].*/\1/p' pyproject.toml)"
  # In the folder of preset cpu-release, as that builds it: the tests' core need not be built again.
  "${pip[@]}" --no-build-isolation --config-settings=build-dir=build/cpu-release \
    --config-settings=cmake.define.DLCORE_WERROR=ON --editable ".[dev,bench,ctrl,dlslime,grammar,otel]"
else
  "${pip[@]}" --no-build-isolation .
fi
