"""What min-p, top-k and top-p leave of a row, by sorting it in float64; and batches that mix the cuts."""

from __future__ import annotations

import torch
from torch import Tensor


def by_sorting(logits: Tensor, temperature: float, min_p: float, top_k: int, top_p: float) -> Tensor:
    """Which tokens of one row the cuts leave, in float64, token by token."""
    p = (logits.double() / temperature).softmax(0)
    alive = p > 0
    if min_p > 0:
        alive &= p >= min_p * p.max() * (1 - 1e-6)
    if 0 < top_k < len(logits):
        alive &= logits >= logits.sort(descending=True).values[top_k - 1]
    if top_p < 1:
        p = torch.where(alive, p, 0)
        p /= p.sum()
        values, order = logits.masked_fill(~alive, -torch.inf).sort(descending=True)
        before = p[order].cumsum(0) - p[order]
        alive &= logits >= values[before < top_p].min()
    return alive


def disagreements(logits: Tensor, threshold: Tensor, cuts: dict[str, Tensor]) -> list[int]:
    """Rows [B, V] in which `logits >= threshold` is not what a sort keeps.

    Not counted are rows where the smaller of the two keeps top_p of the mass to 1e-6: there rounding decides.
    """
    rows = []
    for row, z in enumerate(logits):
        temperature, min_p, top_k, top_p = (
            cuts[name][row].item() for name in ("temperature", "min_p", "top_k", "top_p")
        )
        kept = (z >= threshold[row]) & (z > -torch.inf)
        expected = by_sorting(z, temperature, min_p, int(top_k), top_p) if temperature > 0 else z > -torch.inf
        if torch.equal(kept, expected):
            continue
        whole = by_sorting(z, temperature, min_p, int(top_k), 1.0)
        p = torch.where(whole, (z.double() / temperature).softmax(0), 0)
        if abs((p[kept & expected].sum() / p.sum()).item() - top_p) > 1e-6:
            rows.append(row)
    return rows


def make_cuts(
    num_rows: int, vocab_size: int, spread: float, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits with ties and masks, and the temperature and cuts of each row, every combination of them."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(num_rows)
    logits = spread * torch.randn(num_rows, vocab_size, generator=generator)
    logits[::2] = (4 * logits[::2]).round() / 4  # ties
    logits[1::3, 1::2] = -torch.inf
    top_p = torch.rand(num_rows, generator=generator).clamp(min=0.01)
    top_p[::7] = 1
    return logits, {
        "temperature": torch.tensor([1.0, 0.3, 2.5])[index % 3],
        "min_p": torch.tensor([0.0, 0.0, 0.05, 0.4])[index % 4],
        "top_k": torch.tensor([0, 1, 20, vocab_size // 2, 5000])[index % 5],
        "top_p": top_p,
    }


def make_keys(num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "seeds": torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator),
        "positions": torch.randint(0, 5000, (num_rows,), generator=generator),
        "choices": torch.arange(num_rows) % 2,
    }
