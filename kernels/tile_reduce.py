"""Merges what the tiles of the vocabulary measured into one guided draw per row."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import exponent_origin
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

NO_TOKEN = -1
WEAK_LIFT = 1e-5  # nats of E_β[βĀ], below which Λ is taken from it
NUM_PLAIN_FIELDS, NUM_FIELDS = 5, 11  # of a tile, see `TilePartials`


@dataclass(frozen=True, slots=True)
class GuidedDraw:
    """One drawn token per row, with what was measured before temperature and truncation. Every field is [B].

    token: i64; −1 where the row holds a NaN or no finite logit. Its statistics are then NaN.
    logprob, base_logprob: of the token, under the tilt and under the base.
    kl: KL(tilt ‖ base) in nats, never negative.
    soft_value: Λ(β)/β in the advantage's units; 0, its limit, at β = 0.
    entropy: of the base in nats; None unless asked for.
    flip: bool; the base's likeliest token, lowest id on a tie, is not among the tilt's likeliest.
    lse_base, lse_guided: log Σ exp of z and of z + βĀ.
    """

    token: Tensor
    logprob: Tensor
    base_logprob: Tensor
    kl: Tensor
    soft_value: Tensor
    entropy: Tensor | None
    flip: Tensor
    lse_base: Tensor
    lse_guided: Tensor


@dataclass(frozen=True, slots=True)
class TilePartials:
    """What T tiles of the vocabulary measured of each row, in the order of their tokens.

    With p the row's pivot, the same in every tile, s = β(A − p) and ℓ = z + s, the fields are
    0 the largest z; 1 Σ exp(z − largest); 2 Σ exp(z − largest)·(z − largest), if the entropy was asked for;
    3 the best score; 4 ℓ and 5 z of its token; 6 Σ exp(z − largest)·(A − p);
    7 the largest ℓ; 8 Σ exp(ℓ − largest) and 9 Σ exp(ℓ − largest)·s; 10 ℓ of the token with the largest z.
    In a row without a tilt s is 0 and so is field 6; where no row has one, fields 5 to 10 are missing.

    values: f32[F, B, T]. tokens: i64[B, T], of the best score, lowest id on a tie.
    """

    values: Tensor
    tokens: Tensor


def join_shards(shards: list[TilePartials]) -> TilePartials:
    """The partials of the whole vocabulary from those of its shards, in the order of their tokens."""
    return TilePartials(
        torch.cat([shard.values for shard in shards], 2), torch.cat([shard.tokens for shard in shards], 1)
    )


def _reference(partials: TilePartials, beta: Tensor | None, want_entropy: bool) -> GuidedDraw:
    fields = partials.values.unbind()
    base_tops, base_totals = fields[:2]
    base_top = base_tops.amax(1)
    below = base_tops - base_top.masked_fill(base_top == -torch.inf, 0)[:, None]
    base_scale = below.exp()
    base_total = (base_scale * base_totals).sum(1)
    base_log_total = base_total.log()
    entropy = None
    if want_entropy:
        spread = torch.where(base_scale > 0, base_scale * (fields[2] + base_totals * below), 0).sum(1)
        entropy = base_log_total - spread / base_total

    best = fields[3].argmax(1, keepdim=True)
    token = partials.tokens.gather(1, best)[:, 0]
    guided = base = fields[4].gather(1, best)[:, 0]
    top, log_total = base_top, base_log_total
    drift = kl = soft_value = torch.zeros_like(top)
    flip = torch.zeros_like(top, dtype=torch.bool)
    if beta is not None:
        base = fields[5].gather(1, best)[:, 0]
        drift = beta * (base_scale * fields[6]).sum(1) / base_total
        top = fields[7].amax(1)
        scale = (fields[7] - top.masked_fill(top == -torch.inf, 0)[:, None]).exp()
        total = (scale * fields[8]).sum(1)
        log_total = total.log()
        lift = (scale * fields[9]).sum(1) / total - drift
        log_mean = (top - base_top) + (total / base_total).log() - drift
        kl = (lift - log_mean).clamp(min=0)
        soft_value = torch.where(lift < WEAK_LIFT, lift / 2, log_mean) / beta.masked_fill(beta == 0, 1)
        flip = fields[10].gather(1, base_tops.argmax(1, keepdim=True))[:, 0] < top

    broken = ~log_total.isfinite()

    def whole(values: Tensor) -> Tensor:
        return values.masked_fill(broken, torch.nan)

    return GuidedDraw(
        token.masked_fill(broken, NO_TOKEN),
        whole(guided - top - log_total),
        whole(base - base_top - base_log_total),
        whole(kl),
        whole(soft_value),
        entropy,
        flip,
        whole(base_top + base_log_total),
        whole(top + log_total - drift),
    )


@jit
def _field(values, index: tl.constexpr, field_size, valid, other: tl.constexpr):
    return tl.load(values + index * field_size, mask=valid, other=other)


# One program per row merges its tiles in their order.


@partial(jit, unspecialised=("num_rows",))
def _merge(
    values, tokens, beta, token, out, num_tiles, num_rows,
    tilts: tl.constexpr, entropy: tl.constexpr, weak_lift: tl.constexpr, no_token: tl.constexpr,
    tiles: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.arange(0, tiles)
    valid = tile < num_tiles
    size = tl.num_programs(0).to(tl.int64) * num_tiles
    values += row * num_tiles + tile
    lowest: tl.constexpr = float("-inf")
    base_tops = _field(values, 0, size, valid, lowest)
    base_totals = _field(values, 1, size, valid, 0.0)
    base_top = tl.max(base_tops, 0)
    below = base_tops - exponent_origin(base_top)
    base_scale = tl.exp(below)
    base_total = tl.sum(base_scale * base_totals, 0)
    base_log_total = tl.log(base_total)

    best = valid & (tile == tl.argmax(_field(values, 3, size, valid, lowest), 0))
    drawn = tl.sum(tl.load(tokens + row * num_tiles + tile, mask=best, other=0), 0)
    guided = tl.sum(_field(values, 4, size, best, 0.0), 0)
    base, top, log_total = guided, base_top, base_log_total
    drift = 0.0
    kl = 0.0
    soft_value = 0.0
    flip = 0.0
    if tilts:
        strength = tl.load(beta + row)
        base = tl.sum(_field(values, 5, size, best, 0.0), 0)
        drift = strength * tl.sum(base_scale * _field(values, 6, size, valid, 0.0), 0) / base_total
        tops = _field(values, 7, size, valid, lowest)
        top = tl.max(tops, 0)
        scale = tl.exp(tops - exponent_origin(top))
        total = tl.sum(scale * _field(values, 8, size, valid, 0.0), 0)
        log_total = tl.log(total)
        lift = tl.sum(scale * _field(values, 9, size, valid, 0.0), 0) / total - drift
        # Rounded as IEEE says, x / x is 1; a GPU's own division may miss it, and then β = 0 would cost nats.
        log_mean = (top - base_top) + tl.log(tl.div_rn(total, base_total)) - drift
        kl = tl.maximum(lift - log_mean, 0.0)
        soft_value = tl.where(lift < weak_lift, lift / 2, log_mean) / tl.where(strength == 0, 1.0, strength)
        favourite = valid & (tile == tl.argmax(base_tops, 0))
        flip = tl.where(tl.sum(_field(values, 10, size, favourite, 0.0), 0) < top, 1.0, 0.0)

    whole = tl.abs(log_total) < float("inf")
    nan = float("nan")
    tl.store(token + row, tl.where(whole, drawn, no_token))
    out += row
    tl.store(out, tl.where(whole, guided - top - log_total, nan))
    tl.store(out + num_rows, tl.where(whole, base - base_top - base_log_total, nan))
    tl.store(out + 2 * num_rows, tl.where(whole, kl, nan))
    tl.store(out + 3 * num_rows, tl.where(whole, soft_value, nan))
    tl.store(out + 4 * num_rows, flip)
    tl.store(out + 5 * num_rows, tl.where(whole, base_top + base_log_total, nan))
    tl.store(out + 6 * num_rows, tl.where(whole, top + log_total - drift, nan))
    if entropy:
        spreads = _field(values, 2, size, valid, 0.0)
        spread = tl.sum(tl.where(base_scale > 0, base_scale * (spreads + base_totals * below), 0.0), 0)
        tl.store(out + 7 * num_rows, base_log_total - spread / base_total)


def _launch(partials: TilePartials, beta: Tensor | None, want_entropy: bool) -> GuidedDraw:
    values, tokens = partials.values, partials.tokens
    assert values.is_contiguous()
    assert tokens.is_contiguous()
    num_rows, num_tiles = tokens.shape
    token, out = torch.empty_like(tokens[:, 0]), values.new_empty(8, num_rows)
    _merge[num_rows,](
        values, tokens, beta, token, out, num_tiles, num_rows,
        tilts=beta is not None, entropy=want_entropy, weak_lift=WEAK_LIFT, no_token=NO_TOKEN,
        tiles=triton.next_power_of_2(num_tiles), enable_fp_fusion=False,
    )  # fmt: skip
    logprob, base_logprob, kl, soft_value, flip, lse_base, lse_guided, entropy = out.unbind()
    return GuidedDraw(
        token, logprob, base_logprob, kl, soft_value, entropy if want_entropy else None,
        flip != 0, lse_base, lse_guided,
    )  # fmt: skip


def tile_reduce(
    partials: TilePartials, beta: Tensor | None, *, want_entropy: bool = False, backend: str | None = None
) -> GuidedDraw:
    """The draw of each row from what the tiles of the whole vocabulary measured.

    With m = E[A − p] under the base, `βĀ = s − βm`: so `Λ = log Σ exp ℓ − log Σ exp z − βm` and
    `KL = E_β[s] − (log Σ exp ℓ − log Σ exp z)`, in which the pivot cancels.

    partials: with fields 5 to 10 where beta is given, with field 2 where the entropy is asked for.
    beta: f32[B], 0 in rows without a tilt; None where no row has one. backend: see `choose_backend`.
    """
    return _BACKENDS[choose_backend(partials.values.device, backend)](partials, beta, want_entropy)


_BACKENDS = {"reference": _reference, "triton": _launch}
