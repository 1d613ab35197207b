"""Looks at the machine, one short function a question. Changes nothing, never raises."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dlcore.bundled_model import BUNDLED_MODEL_FOLDER, has_bundled_model
from dlcore.version import VERSION

MIN_PYTHON = (3, 10)
MIN_FREE_MEMORY_GIB = 1.0
COMMAND_TIMEOUT_S = 10.0
INFINIBAND = Path("/sys/class/infiniband")
MEMINFO = Path("/proc/meminfo")
# package -> what works only with it
OPTIONAL_PACKAGES = {
    "triton": "fast kernels on a GPU",
    "flashinfer": "faster attention on a GPU",
    "xgrammar": "structured outputs (pip install 'dlcore[grammar]')",
    "matplotlib": "plots of dlcore bench (pip install 'dlcore[bench]')",
    "aiohttp": "dlcore bench --url (pip install 'dlcore[bench]')",
    "uvloop": "a faster HTTP server",
}


class Status(str, Enum):
    OK = "ok"
    MISSING = "missing"  # something is not there; the rest works without it
    BROKEN = "broken"  # dlcore cannot serve until this is mended


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    status: Status
    detail: str
    fix: str = ""


def examine(port: int) -> list[Finding]:
    """In the order a reader wants them: what must work, then what may."""
    checks: list[Callable[[], Finding]] = [
        check_python,
        check_core,
        check_torch,
        check_memory,
        check_bundled_model,
        lambda: check_port(port),
        check_cuda_driver,
        check_gpu,
        check_nvcc,
        check_kernels,
        check_rdma,
    ]
    packages = [check_package(name, purpose) for name, purpose in OPTIONAL_PACKAGES.items()]
    return [check() for check in checks] + packages


def can_serve(findings: list[Finding]) -> bool:
    return all(f.status is not Status.BROKEN for f in findings)


def check_python() -> Finding:
    detail = f"{platform.python_version()} at {sys.executable}; dlcore {VERSION}"
    if sys.version_info >= MIN_PYTHON:
        return Finding("Python", Status.OK, detail)
    return Finding("Python", Status.BROKEN, detail, "install Python 3.10 or newer")


def check_core() -> Finding:
    try:
        module = import_module("dlcore._core")
    except ImportError as error:
        fix = "build and install it: pip install ."
        return Finding("C++ core", Status.BROKEN, str(error), fix)
    return Finding("C++ core", Status.OK, str(module.__file__))


def check_torch() -> Finding:
    try:
        torch = import_module("torch")
    except ImportError as error:
        return Finding("torch", Status.BROKEN, str(error), "pip install torch")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Finding("torch", Status.OK, f"{torch.__version__} ({built})")


def check_memory() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    available = _available_memory_gib()
    if available is None:
        return Finding("CPU", Status.OK, f"{cores} cores, memory unknown")
    detail = f"{cores} cores, {available:.1f} GiB of memory available"
    if available >= MIN_FREE_MEMORY_GIB:
        return Finding("CPU", Status.OK, detail)
    return Finding("CPU", Status.BROKEN, detail, f"free at least {MIN_FREE_MEMORY_GIB:g} GiB")


def check_bundled_model() -> Finding:
    if has_bundled_model():
        return Finding("bundled model", Status.OK, str(BUNDLED_MODEL_FOLDER))
    fix = "reinstall dlcore, or name a model folder in every command"
    return Finding("bundled model", Status.MISSING, f"not at {BUNDLED_MODEL_FOLDER}", fix)


def check_port(port: int) -> Finding:
    name = f"port {port}"
    try:
        with socket.create_server(("127.0.0.1", port)):
            return Finding(name, Status.OK, "free")
    except OSError as error:
        return Finding(name, Status.MISSING, f"{error.strerror}", "dlcore serve --port ANOTHER")


def check_cuda_driver() -> Finding:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        fix = "only for GPUs: install the NVIDIA driver"
        return Finding("CUDA driver", Status.MISSING, "libcuda.so.1 is not there", fix)
    version = ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    if failed:
        fix = "is a GPU visible here? see nvidia-smi"
        return Finding("CUDA driver", Status.MISSING, f"cuInit: CUDA error {failed}", fix)
    major, minor = version.value // 1000, version.value % 1000 // 10
    return Finding("CUDA driver", Status.OK, f"CUDA {major}.{minor}")


def check_gpu() -> Finding:
    try:
        torch = import_module("torch")
        found = [_describe_gpu(torch, i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # a driver in a bad state fails in many ways
        return Finding("GPU", Status.MISSING, str(error).splitlines()[0])
    if found:
        return Finding("GPU", Status.OK, "; ".join(found))
    fix = "not needed: everything runs on the CPU, slower"
    return Finding("GPU", Status.MISSING, "torch sees none", fix)


def check_nvcc() -> Finding:
    path = shutil.which("nvcc") or _existing("/usr/local/cuda/bin/nvcc")
    if path is None:
        fix = "only to build the CUDA kernels: install the CUDA toolkit"
        return Finding("nvcc", Status.MISSING, "not on PATH", fix)
    return Finding("nvcc", Status.OK, f"{_release_line(path)} at {path}")


def check_kernels() -> Finding:
    folder = Path(__file__).parent
    found = sorted(p.name for p in folder.glob("*kernels*.so"))
    if found:
        return Finding("CUDA kernels", Status.OK, ", ".join(found))
    fix = "built where nvcc is found; without them a GPU runs the Triton ones"
    return Finding("CUDA kernels", Status.MISSING, "not built", fix)


def check_rdma() -> Finding:
    devices = sorted(p.name for p in INFINIBAND.iterdir()) if INFINIBAND.is_dir() else []
    if devices:
        return Finding("RDMA", Status.OK, ", ".join(devices))
    fix = "only for KV transfer between machines; TCP works without"
    return Finding("RDMA", Status.MISSING, "no device", fix)


def check_package(name: str, purpose: str) -> Finding:
    if find_spec(name) is not None:
        return Finding(name, Status.OK, purpose)
    return Finding(name, Status.MISSING, f"for {purpose}")


def _available_memory_gib() -> float | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib[0] / 2**20 if kib else None


def _describe_gpu(torch: object, index: int) -> str:
    cuda = torch.cuda  # type: ignore[attr-defined]
    free, total = cuda.mem_get_info(index)
    name, capability = cuda.get_device_name(index), cuda.get_device_capability(index)
    return (
        f"{index}: {name}, compute {capability[0]}.{capability[1]}, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    )


def _existing(path: str) -> str | None:
    return path if Path(path).is_file() else None


def _release_line(nvcc: str) -> str:
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run ({error})"
    lines = [line for line in done.stdout.splitlines() if "release" in line]
    return lines[0].strip() if lines else "unknown version"
