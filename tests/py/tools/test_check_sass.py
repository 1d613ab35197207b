"""The check of compiled loops finds each kind of fault planted in a disassembly."""

from __future__ import annotations

import pytest

from tools import check_sass

WAIT, SOFTMAX, PRODUCT = (
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "MUFU.EX2 R4, R4",
    "HGMMA.64x64x16 R8, gdesc[UR4]",
)


def faults(name: str, *loop: str) -> list[str]:
    """Of a kernel that is this loop after one other instruction, and another loop after it."""
    texts = ["MOV R1, c[0x0][0x28]", *loop, "@!P0 BRA 0x0010", "FADD R1, R1, R1", "BRA 0x0000"]
    lines = [f"/*{16 * i:04x}*/   {text} ;   /* 0x00 */" for i, text in enumerate(texts)]
    functions = dict(check_sass.functions("\n".join([f"  Function : {name}", *lines])))
    assert len(functions[name]) == len(texts)
    found = check_sass.product_loop(functions[name])
    assert len(found) == len(loop) + 1
    return list(check_sass.faults(name, found))


def test_a_clean_loop_passes() -> None:
    assert faults("TileLinear", PRODUCT, WAIT) == []
    assert faults("PrefillAttention", PRODUCT, SOFTMAX, WAIT) == []


@pytest.mark.parametrize("planted", ["R2UR UR4, R12", "STL [R1], R4", "LDL R4, [R1]"])
def test_what_does_not_belong_into_a_loop_is_found(planted: str) -> None:
    assert len(faults("TileLinear", planted, PRODUCT, WAIT)) == 1


def test_what_one_thread_moves_for_its_copies_is_no_fault() -> None:
    copies = "R2UR UR4, R12", "UTMALDG.2D [UR4], [UR8]"
    assert faults("WideProduct", PRODUCT, WAIT, *copies) == []
    assert len(faults("WideProduct", PRODUCT, WAIT, *copies, "R2UR UR4, R12")) == 1


def test_an_early_wait_for_products_is_found() -> None:
    assert len(faults("PrefillAttention", PRODUCT, WAIT, SOFTMAX)) == 1


def test_kernels_without_products_have_no_such_loop() -> None:
    disassembly = "Function : Norm\n/*0000*/ FADD R1, R1, R1 ;\n/*0010*/ BRA 0x0000 ;\n"
    ((_, instructions),) = check_sass.functions(disassembly)
    loop = check_sass.product_loop(instructions)
    assert not loop
    assert list(check_sass.faults("Norm", loop)) == []
