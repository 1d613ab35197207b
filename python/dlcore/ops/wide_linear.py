"""The CUDA kernel for products with hundreds of tokens and more."""

from __future__ import annotations

from torch import Tensor

from dlcore.ops import kernels
from dlcore.ops.weight_product import WeightProduct, empty_squares

KERNEL = "dlk_wide_linear"
MIN_TOKENS = 385
MIN_K = 1024
TILE = 256  # tokens, and rows of the weight, that two multiprocessors multiply at a time
TOKEN_TILES_TOGETHER = 8
# Of the multiprocessors, over the rounds that the tiles take; less where it saves SwiGLU's pass.
MIN_USE, MIN_USE_FOR_SWIGLU = 0.9, 0.78


def wide_linear_pays(num_tokens: int, weight: Tensor, *, swiglu: bool = False) -> bool:
    """Whether `wide_linear` takes this product and is no slower than the library on an H100."""
    rows, k = weight.shape
    if num_tokens < MIN_TOKENS or k < MIN_K or rows % 16 or k % 8:
        return False
    pairs = kernels.MULTIPROCESSORS // 2
    rounds = -(-_tiles(num_tokens) * _tiles(rows) // pairs)
    min_use = MIN_USE_FOR_SWIGLU if swiglu else MIN_USE
    return num_tokens * rows >= min_use * rounds * pairs * TILE * TILE


def _tiles(size: int) -> int:
    return -(-size // TILE)


def wide_linear(
    x: Tensor,
    weight: Tensor,
    *,
    residual: Tensor | None = None,
    swiglu: bool = False,
    group: int = TOKEN_TILES_TOGETHER,
) -> Tensor:
    """x: [T, K], weight: [N, K] -> [T, N] = x weight^T + residual; float32 sums, rounded once.

    swiglu: weight is [2N, K], gates then ups, and the result silu(gate) * up: [T, N].
    group: tiles of 256 tokens that go through the weight together, to meet in L2.
    N and K are multiples of 8.
    """
    product = WeightProduct(x=x, weight=weight, residual=residual, swiglu=swiglu)
    return product.launch(KERNEL, group)


def wide_linear_of_norm(
    x: Tensor, squares: Tensor, eps: float, weight: Tensor, *, swiglu: bool = False
) -> Tensor:
    """`wide_linear` of x's RMSNorm: [T, N] = rms_norm(x) weight^T. squares: x's."""
    product = WeightProduct(x=x, weight=weight, swiglu=swiglu, squares=squares, eps=eps)
    return product.launch(KERNEL, TOKEN_TILES_TOGETHER)


def wide_linear_before_norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """y = x weight^T + residual: [T, N], and its squares for the RMSNorm after it."""
    squares = empty_squares(x.shape[0], weight.shape[0], TILE, x.device)
    product = WeightProduct(x=x, weight=weight, residual=residual, out_squares=squares)
    return product.launch(KERNEL, TOKEN_TILES_TOGETHER), squares
