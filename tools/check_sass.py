"""Checks what the compiler made of the loops around Hopper's products (docs/kernels.md says why).

python tools/check_sass.py FILE...

A file is the library of the kernels, or one of the objects it is made of. In a loop with HGMMA no
descriptor goes from a lane's register to a uniform one (R2UR), and nothing goes to local memory; in
that of prefill attention the last wait for products stands behind the softmax. Needs cuobjdump,
CUDA's or that of the Python package triton.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FUNCTION = re.compile(r"Function : (\S+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
BRANCH = re.compile(r"BRA\S* .*0x([0-9a-f]+)")
PREFILL = "PrefillAttention"


@dataclass(frozen=True, slots=True)
class Instruction:
    address: int
    text: str


def functions(disassembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Each kernel's name and instructions."""
    for part in re.split(r"(?=Function : )", disassembly):
        name = FUNCTION.match(part)
        if name is not None:
            found = INSTRUCTION.finditer(part)
            yield name[1], [Instruction(int(at[1], 16), at[2]) for at in found]


def product_loop(instructions: Sequence[Instruction]) -> Sequence[Instruction]:
    """The smallest loop with products; empty where there is none."""
    index = {instruction.address: i for i, instruction in enumerate(instructions)}
    loops = []
    for i, instruction in enumerate(instructions):
        branch = BRANCH.search(instruction.text)
        if branch is not None and index.get(int(branch[1], 16), i) < i:
            loops.append(instructions[index[int(branch[1], 16)] : i + 1])
    return min((loop for loop in loops if _places(loop, "HGMMA")), key=len, default=())


def faults(name: str, loop: Sequence[Instruction]) -> Iterator[str]:
    """What is wrong with a kernel's `product_loop`."""
    if moved := _moved_to_products(loop):
        yield f"{moved} operands are computed in each lane"
    if _places(loop, "STL") or _places(loop, "LDL"):
        yield "local memory is used"
    if PREFILL in name and _places(loop, "WARPGROUP.DEPBAR")[-1] < _places(loop, "MUFU.EX2")[-1]:
        yield "the wait for P V stands before the end of the softmax"


def _moved_to_products(loop: Sequence[Instruction]) -> int:
    """R2UR before a product; before a copy (UTMALDG) it moves what one thread asks for."""
    users = sorted(_places(loop, "HGMMA") + _places(loop, "UTMALDG"))
    after = [next((j for j in users if j > i), users[0]) for i in _places(loop, "R2UR")]
    return sum("HGMMA" in loop[j].text for j in after)


def _places(loop: Sequence[Instruction], opcode: str) -> list[int]:
    return [i for i, instruction in enumerate(loop) if opcode in instruction.text]


def find_cuobjdump() -> str | None:
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else None


def disassemble(cuobjdump: str, file: Path) -> str:
    command = [cuobjdump, "-sass", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    files = parser.parse_args().files
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("cuobjdump not found: loops around products not checked")
        return
    num_loops, found = 0, []
    for file in files:
        for name, instructions in functions(disassemble(cuobjdump, file)):
            loop = product_loop(instructions)
            num_loops += bool(loop)
            found += [f"{name}: {fault}" for fault in faults(name, loop)]
    if num_loops == 0:
        raise SystemExit("no loops around products found: are these the kernels?")
    print(f"{num_loops} loops around products checked")
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
