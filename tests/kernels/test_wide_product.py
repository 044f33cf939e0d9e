from __future__ import annotations

import pytest
import torch

from trimtab.kernels.wide_product import wide_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_product_in_fp32(dtype: torch.dtype):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, matrix = torch.randn(5, 64, device=device).to(dtype), torch.randn(33, 64, device=device).to(dtype)
    product = wide_product(x, matrix)
    assert product.dtype == torch.float32
    exact = x.double() @ matrix.double().T
    is_rounded = dtype == torch.bfloat16 and device == "cpu"
    assert float((product - exact).abs().max()) < (0.1 if is_rounded else 1e-4)
