#!/usr/bin/env python3
"""Runs the tests of transports, and of engines that use them, over real RDMA verbs, without a NIC.

A Debian kernel boots in QEMU with Soft-RoCE (rdma_rxe) on a dummy interface, the C++
test binaries run there as init's only job, and their result comes back through the
serial console. Needs no root and no KVM.

Exit status: 0 passed, 1 failed, 77 skipped (one SKIP line says why; an error with
--require).
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

PACKAGES = (
    "libibverbs1", "ibverbs-providers", "iproute2", "busybox-static", "libnl-3-200",
    "libnl-route-3-200", "libmnl0", "libbsd0", "libmd0", "libcap2", "libnuma1", "libbpf1",
    "libelf1", "libtirpc3", "libselinux1", "libpcre2-8-0", "zlib1g",
)  # fmt: skip
MODULES = ("crc32_generic", "rdma_rxe", "dummy")
SHARING_MODULES = ("virtio_pci", "9pnet_virtio", "9p")
LIB_DIR = "usr/lib/x86_64-linux-gnu"
SKIPPED = 77

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /tmp
/bin/busybox mount -t tmpfs shm /dev/shm
/bin/busybox mount -t tmpfs tmp /tmp
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod /modules/$module || echo "RXE-VM insmod $module failed"
done
export LD_LIBRARY_PATH=/{lib}
/sbin/ip link set lo up
/sbin/ip link add dummy0 type dummy 2>/dev/null
/sbin/ip addr add 10.99.0.1/24 dev dummy0
/sbin/ip link set dummy0 mtu 4200 up
/sbin/rdma link add rxe0 type rxe netdev dummy0 || echo "RXE-VM no rxe device"
ulimit -l unlimited
result=0
for test in /tests/*; do
  [ -x $test ] || continue
  $test {arguments} || result=1
done
{command}
echo "RXE-VM-RC $result"
/bin/busybox reboot -f
"""


# This machine's files, read-only but for /tmp, and a command among them.
COMMAND = """unset LD_LIBRARY_PATH
/bin/busybox mkdir /host
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose host /host
for folder in proc sys dev dev/shm tmp; do
  /bin/busybox mount -o bind /$folder /host/$folder
done
/bin/busybox chroot /host /bin/sh -c "cd {folder} && HOME=/tmp {command}" || result=1
"""


class SkipError(Exception):
    """Something this machine lacks."""


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SkipError(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return str(done.stdout)


def kernel_package() -> str:
    for line in run(["apt-cache", "depends", "linux-image-amd64"]).splitlines():
        found = re.search(r"Depends: (linux-image-\S+)", line)
        if found and "cloud" not in found.group(1):
            return found.group(1)
    raise SkipError("apt knows no linux-image-amd64")


def unpack_packages(cache: Path) -> Path:
    """Downloads the packages once and unpacks them (nothing is installed)."""
    kernel = kernel_package()
    root = cache / f"root-{kernel}"
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    for package in (kernel, *PACKAGES):
        if not list(debs.glob(f"{package}_*.deb")):
            run(["apt-get", "download", package], cwd=debs)
        for deb in debs.glob(f"{package}_*.deb"):
            run(["dpkg-deb", "-x", str(deb), str(root)])
    merge_usr(root)
    (root / "complete").touch()
    return root


def merge_usr(root: Path) -> None:
    """Moves /lib, /bin and /sbin under /usr, as on a merged-usr system."""
    for name in ("lib", "bin", "sbin"):
        if (root / name).is_dir() and not (root / name).is_symlink():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)


def extract_vmlinux(root: Path, cache: Path) -> Path:
    """The ELF kernel inside vmlinuz: QEMU boots it directly, without unpacking under TCG."""
    image = next((root / "boot").glob("vmlinuz-*"))
    target = cache / f"vmlinux-{image.name}"
    if target.exists():
        return target
    data = image.read_bytes()
    start = 0
    while (start := data.find(b"\xfd7zXZ\0", start)) >= 0:
        try:
            kernel = lzma.LZMADecompressor().decompress(data[start:])
        except lzma.LZMAError:
            kernel = b""
        if kernel[:4] == b"\x7fELF":
            target.write_bytes(kernel)
            return target
        start += 6
    raise SkipError(f"no xz-packed kernel in {image.name}")


def module_order(root: Path, names: Iterable[str]) -> list[Path]:
    """The modules and what they depend on, dependencies first."""
    files = {
        p.name.split(".")[0].replace("-", "_"): p for p in root.glob("usr/lib/modules/**/*.ko*")
    }
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None:
            raise SkipError(f"the kernel package has no module {name}")
        if path in order:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", b"\0" + path.read_bytes())
        for dependency in (depends.group(1).decode() if depends else "").split(","):
            if dependency:
                add(dependency)
        order.append(path)

    for module in names:
        add(module)
    return order


def shared_libraries(root: Path, binaries: Iterable[Path]) -> set[Path]:
    """What the binaries load, from the unpacked packages first and this machine next."""
    found: set[Path] = set()
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root / LIB_DIR)}
    for binary in binaries:
        for line in run(["ldd", str(binary)], env=environment).splitlines():
            path = re.search(r"(?:=> )?(/\S+) \(0x", line)
            if path:
                found.add(Path(path.group(1)))
            elif "not found" in line:
                raise SkipError(f"{binary.name}: {line.strip()}")
    return found


class Initrd:
    """A newc cpio archive."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._made: set[str] = set()
        self._inode = 0

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        self._data += b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        self._data += b"\0" * (-len(self._data) % 4) + content
        self._data += b"\0" * (-len(self._data) % 4)

    def directory(self, name: str) -> None:
        parts = name.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            if path and path not in self._made:
                self._made.add(path)
                self._entry(path, 0o040755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        self.directory(os.path.dirname(name))
        self._entry(name, 0o100000 | mode, content)

    def write(self, target: Path) -> None:
        self._entry("TRAILER!!!", 0, b"")
        target.write_bytes(self._data)


def build_initrd(
    root: Path,
    binaries: list[Path],
    plugins: list[Path],
    init: str,
    modules: tuple[str, ...],
    target: Path,
) -> None:
    initrd = Initrd()
    for name in ("proc", "sys", "dev", "tmp", "etc"):
        initrd.directory(name)
    ip, rdma = root / "usr/bin/ip", root / "usr/bin/rdma"
    tools = {
        "bin/busybox": root / "usr/bin/busybox",
        "sbin/ip": ip,
        "sbin/rdma": rdma,
    } | {f"tests/{binary.name}": binary for binary in binaries}
    for name, alternatives in {
        "sbin/ip": root / "usr/sbin/ip",
        "sbin/rdma": root / "usr/sbin/rdma",
    }.items():
        if not tools[name].exists():
            tools[name] = alternatives
    verbs = (root / LIB_DIR / "libibverbs.so.1").resolve()
    provider = next((root / LIB_DIR / "libibverbs").glob("librxe-rdmav*.so"))
    for name, path in tools.items():
        initrd.file(name, path.read_bytes())
    dynamic = [tools["sbin/ip"], tools["sbin/rdma"], *binaries, verbs, provider, *plugins]
    for library in sorted(shared_libraries(root, dynamic)):
        is_loader = library.name.startswith("ld-linux")
        initrd.file(("lib64/" if is_loader else f"{LIB_DIR}/") + library.name, library.read_bytes())
    for plugin in plugins:
        initrd.file(f"{LIB_DIR}/{plugin.name}", plugin.read_bytes())
    initrd.file(f"{LIB_DIR}/libibverbs.so.1", verbs.read_bytes())
    initrd.file(f"{LIB_DIR}/libibverbs/{provider.name}", provider.read_bytes())
    initrd.file("etc/libibverbs.d/rxe.driver", b"driver rxe\n", 0o644)
    order = module_order(root, modules)
    for module in order:
        initrd.file(f"modules/{module.name}", module.read_bytes(), 0o644)
    initrd.file("modules/order", "\n".join(m.name for m in order).encode(), 0o644)
    initrd.directory("tests")
    initrd.file("init", init.encode())
    initrd.write(target)


def boot(kernel: Path, initrd: Path, log: Path, timeout_s: int, *, shares_files: bool) -> str:
    log.unlink(missing_ok=True)
    memory, cpus = ("4096", "4") if shares_files else ("1024", "2")
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "pc",
        "-cpu", "max,-erms,-fsrm", "-m", memory, "-smp", cpus, "-nodefaults", "-display", "none",
        "-no-reboot", "-nic", "none", "-serial", f"file:{log}", "-kernel", str(kernel),
        "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr",
    ]  # fmt: skip
    if shares_files:
        share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        command += ["-virtfs", share]
    try:
        subprocess.run(command, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        print(f"FAIL: the VM did not end within {timeout_s} s")
    return log.read_text(errors="replace") if log.exists() else ""


def run_tests(arguments: argparse.Namespace) -> int:
    for tool in ("qemu-system-x86_64", "apt-get", "dpkg-deb", "ldd"):
        if shutil.which(tool) is None:
            raise SkipError(f"{tool} is not installed")
    for path in (*arguments.binaries, *arguments.plugin):
        if not path.exists():
            raise SkipError(f"{path} is not built")
    arguments.cache.mkdir(parents=True, exist_ok=True)
    root = unpack_packages(arguments.cache)
    kernel = extract_vmlinux(root, arguments.cache)
    initrd = arguments.cache / f"initrd-{os.getpid()}"
    log = arguments.cache / f"serial-{os.getpid()}.log"
    try:
        shares_files = arguments.command is not None
        command = COMMAND.format(folder=Path.cwd(), command=arguments.command)
        init = INIT.format(
            lib=LIB_DIR,
            arguments=f"--gtest_filter={arguments.filter}",
            command=command if shares_files else "",
        )
        modules = MODULES + (SHARING_MODULES if shares_files else ())
        build_initrd(root, arguments.binaries, arguments.plugin, init, modules, initrd)
        output = boot(kernel, initrd, log, arguments.timeout, shares_files=shares_files)
    finally:
        initrd.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
    print(output)
    # The VM has what the tests need: one that was skipped found something broken.
    empty = "[  PASSED  ] 0 tests" in output or "[  SKIPPED ]" in output
    passed = re.search(r"RXE-VM-RC 0\b", output) and not empty
    print("PASS: over RDMA verbs" if passed else "FAIL: see the console above")
    return 0 if passed else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "binaries", type=Path, nargs="*", help="transport_tests, engine_tests; no sanitizer build"
    )
    parser.add_argument(
        "--command", help="runs there too, in this folder; it sees this machine's files"
    )
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], help="a library the tests dlopen"
    )
    parser.add_argument(
        "--filter", default="*/rdma*:*/dlslime*:Verbs.*:Dlslime*", help="which tests run (gtest)"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/dlcore/rdma-vm")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for the whole VM")
    parser.add_argument("--require", action="store_true", help="a skip is a failure")
    arguments = parser.parse_args()
    try:
        return run_tests(arguments)
    except SkipError as error:
        print(f"{'FAIL' if arguments.require else 'SKIP'}: {error}")
        return 1 if arguments.require else SKIPPED


if __name__ == "__main__":
    sys.exit(main())
