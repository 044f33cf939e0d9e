"""Strength of a tilt: solves for the largest, or the just sufficient, that a row's limits allow."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import exponent_origin
from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.dispatch import choose_backend, jit, tl

MAX_EVALUATIONS = 8  # of Λ, Λ′ and Λ″ of a row; each reads the whole row
SLACK = 2.0**-8  # a row is solved once its reach lies in [1 − SLACK, 1]
AIM = 1 - SLACK / 2
NEAR = 0.5  # distance from AIM within which Newton's step is trusted
WEAK = 1e-3  # nats of E_β[βĀ] below which a KL is taken from its expansion
TINY = 1e-30

# Numbers that the reference works on at a time, from the first reading to the last, while they stay in a
# core's cache; but never fewer rows than there are threads.
PART = 2**16

# One program per row, since rows are solved in different numbers of evaluations.
BLOCK_V, NUM_WARPS = 4096, 16

# In what follows b = |β|, σ = sign(β), E = σΛ′ = σ E_β[Ā] and variance = Λ″ = Var_β[Ā]. Both limits become
# one increasing function of b, 0 at 0 and 1 where the first of them is met:
#     reach(b) = max(√(KL / cap), (1 − SLACK) E / lift).
# √KL is nearly linear in b where KL is nearly a parabola. With the factor 1 − SLACK a solved row has
# E ≥ lift, as it has KL ≤ cap.


@dataclass(frozen=True, slots=True)
class _Point:
    """What is known at one b of a row; as it stands, at 0."""

    at: float = 0.0
    reach: float = 0.0
    slope: float = 0.0
    kl: float = 0.0
    lift: float = 0.0


class _Search:
    """The largest b ≤ limit of one row with reach ≤ 1, up to SLACK; from below where readings do not suffice.

    The first reading is at the limit, or at the b to which the slope at 0 leads if that is less. (The kernel,
    whose readings cost less, begins at the limit.) In Python's numbers: there are some fifty operations from
    one reading to the next, and torch takes as long for one of them as Python for ten.
    """

    def __init__(self, limit: float, sign: float, kl_cap: float, lift: float) -> None:
        self._limit, self._sign, self._kl_cap, self._wanted = limit, sign, kl_cap, lift
        self._is_cautious = True
        self._low = _Point()
        self._high = _Point(limit, math.inf, kl=math.inf)  # until one above is known

    def begin(self, top: float, total: float, variance: float) -> float | None:
        """The first β to read at, None where the row is broken. See `_Part.read`."""
        if not (total > 0 and variance >= 0):  # of a NaN neither is true
            return None
        self._top, self._total = top, total
        by_cap, by_lift = math.sqrt(variance / (2 * self._kl_cap)), (1 - SLACK) * variance / self._wanted
        self._low = _Point(slope=max(by_cap, by_lift))  # of √KL: at 0 KL itself has none
        return self._sign * min(self._limit, AIM / max(self._low.slope, TINY))

    def go_on(self, beta: float, measured: Sequence[float]) -> float | None:
        """The next β to read at after what this one gave, None where that will do. See `_Part.measure`."""
        top, total, first, second = measured
        b, lift = self._sign * beta, self._sign * first
        variance = max(second - lift * lift, 0.0)
        kl = _kl(b, lift, variance, (top - self._top) + math.log(total / self._total))
        by_cap, by_lift = math.sqrt(kl / self._kl_cap), (1 - SLACK) * lift / self._wanted
        reach = max(by_cap, by_lift)
        if by_cap >= by_lift:
            slope = by_cap * b * variance / (2 * max(kl, TINY))
        else:
            slope = (1 - SLACK) * variance / self._wanted
        point = _Point(b, reach, slope, kl, lift)
        if not reach <= 1:
            self._high = point
        else:
            self._low = point
            if reach >= 1 - SLACK or b == self._limit:
                return None
        return None if math.isnan(reach) else self._sign * self._propose()

    @property
    def found(self) -> float:
        return self._low.at

    def _propose(self) -> float:
        """The next b, strictly inside the bracket where that has room.

        Newton's step is taken from the end that is near. Elsewhere two others take turns: the smaller of
        Newton's from below and the b at which the tangents of Λ at both ends meet, a knee's place; and cubic
        interpolation of b over reach with slopes held to three secants, which keeps it monotone (Fritsch and
        Carlson, 1980).
        """
        low, high = self._low, self._high
        below, above = AIM - low.reach, high.reach - AIM
        from_low = low.at + below / max(low.slope, TINY)
        if math.isinf(above):
            return min(from_low, high.at)
        newton = from_low if below < above else high.at - above / max(high.slope, TINY)
        if min(below, above) < NEAR and low.at < newton < high.at:
            return newton

        self._is_cautious = not self._is_cautious
        if not self._is_cautious:
            knee = (high.kl - low.kl) / max(high.lift - low.lift, TINY)
            return min(max(min(from_low, knee), low.at), high.at)
        width, height = high.at - low.at, high.reach - low.reach
        secant, t = width / height, below / height
        start = min(1 / max(low.slope, TINY), 3 * secant)
        end = min(1 / max(high.slope, TINY), 3 * secant)
        rest = 1 - t
        cubic = low.at + width * t * t * (3 - 2 * t) + height * t * rest * (start * rest - end * t)
        return min(max(cubic, low.at), high.at)


def _kl(b: float, lift: float, variance: float, log_mean: float) -> float:
    """βΛ′ − Λ. A weak tilt's Λ drowns in the rounding of two normalisers: its KL is (2βΛ′ + β²Λ″)/6.

    That is right to third order in β. β²Λ″ = βΛ′ to first order, so where they differ it is not used.
    """
    rise, spread = b * lift, b * b * variance
    is_weak = rise < WEAK and spread < 1.25 * rise
    return max((2 * rise + spread) / 6 if is_weak else rise - log_mean, 0.0)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows that are read together: z and Ā, [N, V] each."""

    z: Tensor
    centred: Tensor

    @classmethod
    def read(cls, logits: Tensor, advantage: Tensor, rows: Tensor, places: Tensor) -> tuple[_Part, Tensor]:
        """Rows i64[N] of the logits with theirs of the advantage; and top and total of z, and Var_{π₀}[Ā],
        [N, 3]."""
        z, centred = _rows_of(logits, rows), _rows_of(advantage, places)
        centred = centred - centred[:, :1]
        probabilities, top = z.softmax(1), z.amax(1)
        total = probabilities.amax(1).reciprocal_()
        centred -= _sum(probabilities * centred)[:, None]
        variance = _sum(probabilities.mul_(centred).mul_(centred))
        return cls(z, centred), torch.stack([top, total, variance], 1)

    def measure(self, beta: Tensor) -> Tensor:
        """Top and total of z + βĀ, E_β[Ā] and E_β[Ā²], [N, 4]."""
        guided = torch.addcmul(self.z, self.centred, beta[:, None])
        probabilities, top = guided.softmax(1), guided.amax(1)
        total = probabilities.amax(1).reciprocal_()
        first = _sum(probabilities.mul_(self.centred))
        second = _sum(probabilities.mul_(self.centred))
        return torch.stack([top, total, first, second], 1)

    def only(self, places: Sequence[int]) -> _Part:
        if len(places) == len(self.z):
            return self
        kept = torch.tensor(places, device=self.z.device)
        return _Part(_rows_of(self.z, kept), _rows_of(self.centred, kept))


def _rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """[N, V]; a single one without a copy."""
    return values.narrow(0, int(rows), 1) if len(rows) == 1 else values.index_select(0, rows)


def _sum(values: Tensor) -> Tensor:
    """Σ of each row, [N]. Of several rows torch gives each to one thread; a long one alone it would split
    among them, to other bits, and so it gets company."""
    is_split = len(values) == 1 and torch.get_num_threads() > 1
    return values.expand(2, -1).sum(1)[:1] if is_split else values.sum(1)


def _solve(part: _Part, measured: Tensor, searches: Sequence[_Search]) -> None:
    """Lets the searches of a part's rows find what they look for. measured: see `_Part.read`."""
    asked = [search.begin(*row) for search, row in zip(searches, measured.tolist(), strict=True)]
    for _ in range(MAX_EVALUATIONS - 1):
        going = [i for i, beta in enumerate(asked) if beta is not None]
        if not going:
            break
        part, searches = part.only(going), [searches[i] for i in going]
        betas = torch.tensor([asked[i] for i in going], device=part.z.device)
        found = part.measure(betas).tolist()
        asked = [search.go_on(*each) for search, *each in zip(searches, betas.tolist(), found, strict=True)]


def _reference(
    logits: Tensor,
    advantage: Tensor,
    advantage_row: Tensor,
    strength: Tensor,
    kl_cap: Tensor | None,
    lift: Tensor | None,
) -> Tensor:
    off = torch.full_like(strength, torch.inf)
    kl_cap, lift = off if kl_cap is None else kl_cap, off if lift is None else lift
    b = strength.abs().masked_fill_((advantage_row < 0) | (kl_cap <= 0) | (lift <= 0), 0)
    rows = ((b > 0) & (torch.minimum(kl_cap, lift) < torch.inf)).nonzero()[:, 0]
    asked = torch.stack([b, strength.sign(), kl_cap, lift], 1)[rows]
    searches = [_Search(*row) for row in asked.tolist()]
    places, size = advantage_row[rows], max(torch.get_num_threads(), PART // logits.shape[1])
    for start in range(0, len(rows), size):
        mine = slice(start, start + size)
        _solve(*_Part.read(logits, advantage, rows[mine], places[mine]), searches[mine])
    b[rows] = torch.tensor([search.found for search in searches], device=b.device)
    return b.copysign_(strength)


@jit
def _totals(logits, advantage, origin, beta, vocab_size, block: tl.constexpr):
    """Of x = z + βC with C = A − origin, in one row: the largest x, and below it Σ exp, Σ exp·C and Σ exp·C².

    Each lane keeps its own largest x, so that lanes meet only once.
    """
    lane = tl.arange(0, block)
    tops = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    first, second = total, total
    for start in range(0, vocab_size, block):
        inside = start + lane < vocab_size
        z = tl.load(logits + start + lane, mask=inside, other=float("-inf"))
        centred = tl.load(advantage + start + lane, mask=inside, other=0.0) - origin
        x = z + beta * centred
        higher = tl.maximum(tops, x)
        level = exponent_origin(higher)
        scale, weight = tl.exp(tops - level), tl.exp(x - level)
        tops = higher
        total = total * scale + weight
        weight *= centred
        first = first * scale + weight
        second = second * scale + weight * centred
    top = tl.max(tops, 0)
    scale = tl.exp(tops - exponent_origin(top))
    return top, tl.sum(total * scale, 0), tl.sum(first * scale, 0), tl.sum(second * scale, 0)


@jit
def _next(
    low, low_reach, low_slope, low_kl, low_lift, high, high_reach, high_slope, high_kl, high_lift, cautious,
    aim: tl.constexpr, near: tl.constexpr, tiny: tl.constexpr,
):  # fmt: skip
    """See `_Search._propose`."""
    below, above = aim - low_reach, high_reach - aim
    from_low = low + below / tl.maximum(low_slope, tiny)
    from_high = high - above / tl.maximum(high_slope, tiny)
    newton = tl.where(below < above, from_low, from_high)
    trusted = (tl.minimum(below, above) < near) & (newton > low) & (newton < high)

    width, height = high - low, high_reach - low_reach
    knee = tl.minimum(from_low, (high_kl - low_kl) / tl.maximum(high_lift - low_lift, tiny))

    secant, t = width / height, below / height
    start = tl.minimum(1 / tl.maximum(low_slope, tiny), 3 * secant)
    end = tl.minimum(1 / tl.maximum(high_slope, tiny), 3 * secant)
    rest = 1 - t
    cubic = low + width * t * t * (3 - 2 * t) + height * t * rest * (start * rest - end * t)

    proposal = tl.where(trusted, newton, tl.where(cautious == 1, knee, cubic))
    return tl.minimum(tl.maximum(proposal, low), high), trusted


@jit
def _solve_rows(
    logits, advantage, advantage_row, strength, kl_cap, lift, out,
    logits_stride, advantage_stride, vocab_size,
    max_evaluations: tl.constexpr, slack: tl.constexpr, near: tl.constexpr, weak: tl.constexpr,
    tiny: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    source, signed = tl.load(advantage_row + row), tl.load(strength + row)
    limit, sign = tl.abs(signed), tl.where(signed < 0, -1.0, 1.0)
    cap = tl.full((), float("inf"), tl.float32)
    if kl_cap is not None:
        cap = tl.load(kl_cap + row)
    wanted = tl.full((), float("inf"), tl.float32)
    if lift is not None:
        wanted = tl.load(lift + row)
    found = tl.where((source < 0) | (cap <= 0) | (wanted <= 0), 0.0, limit)

    if (found > 0) & (tl.minimum(cap, wanted) < float("inf")):
        z, a = logits + row * logits_stride, advantage + source * advantage_stride
        origin = tl.load(a)
        base_top, base_total, first, second = _totals(z, a, origin, 0.0, vocab_size, block)
        mean = first / base_total
        variance = tl.maximum(second / base_total - mean * mean, 0.0)
        origin += mean

        low, low_reach, low_kl, low_lift = 0.0, 0.0, 0.0, 0.0
        low_slope = tl.maximum(tl.sqrt(variance / (2 * cap)), (1 - slack) * variance / wanted)
        high, high_reach, high_slope, high_kl, high_lift = limit, 0.0, 0.0, 0.0, 0.0
        b, cautious = limit, 1
        sound = (base_total > 0) & (tl.abs(mean) < float("inf"))  # neither NaN, which maxima would swallow
        evaluations = tl.where(sound, 1, max_evaluations)
        while evaluations < max_evaluations:
            top, total, first, second = _totals(z, a, origin, sign * b, vocab_size, block)
            evaluations += 1
            gain = sign * first / total
            variance = tl.maximum(second / total - gain * gain, 0.0)
            rise, spread = b * gain, b * b * variance
            log_mean = (top - base_top) + tl.log(total / base_total)
            expanded = (rise < weak) & (spread < 1.25 * rise)
            kl = tl.maximum(tl.where(expanded, (2 * rise + spread) / 6, rise - log_mean), 0.0)
            by_cap, by_lift = tl.sqrt(kl / cap), (1 - slack) * gain / wanted
            by_cap_slope = by_cap * b * variance / (2 * tl.maximum(kl, tiny))
            slope = tl.where(by_cap >= by_lift, by_cap_slope, (1 - slack) * variance / wanted)
            reach = tl.maximum(by_cap, by_lift)

            allowed = reach <= 1
            solved = allowed & ((reach >= 1 - slack) | (b == limit))
            evaluations = tl.where(solved, max_evaluations, evaluations)
            low, high = tl.where(allowed, b, low), tl.where(allowed, high, b)
            low_reach, high_reach = tl.where(allowed, reach, low_reach), tl.where(allowed, high_reach, reach)
            low_slope, high_slope = tl.where(allowed, slope, low_slope), tl.where(allowed, high_slope, slope)
            low_kl, high_kl = tl.where(allowed, kl, low_kl), tl.where(allowed, high_kl, kl)
            low_lift, high_lift = tl.where(allowed, gain, low_lift), tl.where(allowed, high_lift, gain)

            b, trusted = _next(
                low, low_reach, low_slope, low_kl, low_lift, high, high_reach, high_slope, high_kl, high_lift,
                cautious, 1 - slack / 2, near, tiny,
            )  # fmt: skip
            cautious = tl.where(trusted, cautious, 1 - cautious)
        found = low
    tl.store(out + row, sign * found)


def _launch(
    logits: Tensor,
    advantage: Tensor,
    advantage_row: Tensor,
    strength: Tensor,
    kl_cap: Tensor | None,
    lift: Tensor | None,
) -> Tensor:
    assert logits.stride(1) == advantage.stride(1) == 1
    num_rows, vocab_size = logits.shape
    beta = torch.empty_like(strength)
    _solve_rows[num_rows,](
        logits, advantage, advantage_row, strength, kl_cap, lift, beta,
        logits.stride(0), advantage.stride(0), vocab_size,
        max_evaluations=MAX_EVALUATIONS, slack=SLACK, near=NEAR, weak=WEAK, tiny=TINY,
        block=BLOCK_V, num_warps=NUM_WARPS,
    )  # fmt: skip
    return beta


def solve_tilt(
    logits: Tensor,
    advantage: Tensor,
    advantage_row: Tensor,
    *,
    strength: Tensor,
    kl_cap: Tensor | None = None,
    lift: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Choose β of each row within its limits, in at most eight readings of the row.

    β = σb with σ the sign of `strength`, and b the smallest of: |strength|; the largest b with
    KL(π_β ‖ π₀) ≤ kl_cap; the smallest b with σ E_β[Ā] ≥ lift, |strength| where none has. b is approached
    from below, so that KL never passes kl_cap by more than rounding. Where eight readings suffice it lies
    within 1 % of a cap that decides, and the lift is met within as much above; where a row's KL leaps, as a
    rare token overtakes the others, they may end on a smaller b.

    Args:
        logits: f32[B, V], z of the base; −inf marks a masked token.
        advantage: f32[G, V], finite; an offset per row changes nothing.
        advantage_row: i64[B], each row's place in `advantage`, −1 for none.
        strength: f32[B]. kl_cap: f32[B], nats; lift: f32[B], in units of the advantage. +inf is off, and what
            is 0 or less already holds at β = 0 (lift) or only there (kl_cap).
        backend: see `choose_backend`.

    Returns:
        f32[B]; 0 in rows without an advantage, and in those whose limits ask about a NaN or about no finite
        logit.
    """
    if not len(advantage):
        return torch.zeros_like(strength)
    run = _BACKENDS[choose_backend(logits.device, backend, _BACKENDS)]
    return run(logits, advantage, advantage_row, strength, kl_cap, lift)


_BACKENDS = {"reference": _reference, "triton": _launch, "cpu": cpu.solve_tilt}
