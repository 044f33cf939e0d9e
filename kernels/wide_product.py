"""Products with a vocabulary-sized matrix whose results keep fp32, whatever the type of the factors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def wide_product(x: Tensor, matrix: Tensor) -> Tensor:
    """`x matrixᵀ` in f32[N, V]: x [N, d] and matrix [V, d] of one type.

    On CUDA the sums are never rounded to the factors' type: a logit of 20 in bfloat16 is off by up to 0.06.
    Elsewhere the library's own product is rounded first, since it has no other.
    """
    assert x.dtype == matrix.dtype
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, matrix.T, out_dtype=torch.float32)
    return F.linear(x, matrix).float()
