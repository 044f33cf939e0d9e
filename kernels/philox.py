"""Philox-4x32-10 random integers, and Gumbel noise keyed by what is drawn and by nothing else.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Token i of a row reads word `i & 3` of the block whose key is the row's 64-bit seed and whose counter is
`(i >> 2, position, choice, purpose)`, so a draw is the same in any row, batch, tile or rank.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.kernels.dispatch import jit, tl

NUM_ROUNDS = 10
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
LARGEST_UNIFORM = 1 - 2.0**-24

DRAW, SIFT = 0, 1  # the purposes of noise that draws the next token, and of what picks among replies

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox_4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox-4x32-10 of counters and keys that broadcast against each other.

    counter, key: four and two i64 tensors of values in [0, 2³²), all with the same number of dimensions.

    Returns:
        Four i64 tensors of values in [0, 2³²), of the broadcast shape.
    """
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    # Words 0 and 2 are halves of one tensor, as are 1 and 3: a short row pays for calls, not for arithmetic.
    # All is one allocation: malloc keeps one for the next call, and would return several to the system.
    even, odd, product = torch.empty(3, 2, *shape, dtype=torch.int64, device=counter[0].device).unbind()
    word_0, word_2 = even.unbind()
    (word_1, word_3), (product_1, product_0) = odd.unbind(), product.unbind()
    for word, value in zip((word_0, word_1, word_2, word_3), counter, strict=True):
        word.copy_(value)
    for round_key in _round_keys(key):
        torch.mul(word_0, MULTIPLIER_0, out=product_0)
        torch.mul(word_2, MULTIPLIER_1, out=product_1)
        torch.bitwise_right_shift(product, 32, out=even)
        even ^= odd
        even ^= round_key
        even &= MASK
        # The low words need no mask before the end: only what is multiplied must be free of higher bits.
        odd, product = product, odd
        word_1, word_3, product_1, product_0 = product_1, product_0, word_1, word_3
    odd &= MASK
    return word_0, word_1, word_2, word_3


def _round_keys(key: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
    first = torch.stack(key)
    ones = [1] * key[0].dim()
    weyl = torch.tensor((WEYL_0, WEYL_1), device=first.device).view(2, *ones)
    rounds = torch.arange(NUM_ROUNDS, device=first.device).view(NUM_ROUNDS, 1, *ones)
    return ((first + rounds * weyl) & MASK).unbind()


def random_words(
    seeds: Tensor, positions: Tensor, choices: Tensor, num_tokens: int, purpose: int = DRAW
) -> Words:
    """The integers behind `gumbel_noise`: word w of block b [B, ⌈V/4⌉] belongs to token 4b + w."""
    blocks = torch.arange(-(-num_tokens // 4), device=seeds.device)[None]
    counter = (blocks, _word(positions), _word(choices), torch.full_like(blocks[:, :1], purpose))
    return philox_4x32(counter, (_word(seeds), _word(seeds >> 32)))


@jit
def gumbel_tile(seed, position, choice, first_token, purpose: tl.constexpr, block: tl.constexpr):
    """`gumbel_noise` of the tokens first_token … first_token + block − 1 of one row; both multiples of 4."""
    blocks = first_token // 4 + tl.arange(0, block // 4)
    w0, w1, w2, w3 = tl.philox(seed, blocks, position.to(tl.int32), choice.to(tl.int32), purpose)
    return gumbel_of(tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (block,)))


@jit
def gumbel_at(seed, position, choice, tokens, purpose: tl.constexpr):
    """`gumbel_noise` of any tokens of one row."""
    w0, w1, w2, w3 = tl.philox(seed, tokens // 4, position.to(tl.int32), choice.to(tl.int32), purpose)
    word = tokens % 4
    return gumbel_of(tl.where(word < 2, tl.where(word == 0, w0, w1), tl.where(word == 2, w2, w3)))


@jit
def gumbel_of(words):
    """The noise that random words become, see `gumbel_noise`."""
    u = tl.minimum(words.to(tl.float32) * 2.0**-32 + 2.0**-33, 1 - 2.0**-24)
    rest = 1 - u
    # W. Kahan's log1p(−u): what rounding took from 1 − u is given back by the quotient.
    log1p = tl.where(rest == 1, -u, tl.log(rest) * (u / (1 - rest)))
    return -tl.log(-log1p)


def gumbel_noise(
    seeds: Tensor, positions: Tensor, choices: Tensor, num_tokens: int, purpose: int = DRAW
) -> Tensor:
    """Standard Gumbel noise for every token of every row.

    With the random integer r of a token, `u = min((r + ½)·2⁻³², 1 − 2⁻²⁴)` and `g = −log(−log1p(−u))`: log1p
    keeps the tail that a 24-bit uniform loses, the clamp keeps g finite where fp32 rounds u to 1.

    Args:
        seeds: i64[B], any 64 bits.
        positions, choices: i64[B], the place of the drawn token in its sequence, and which of the request's
            choices (or forks) draws it; their lowest 32 bits count.
        num_tokens: vocabulary size V.
        purpose: separates streams that draw at the same place.

    Returns:
        f32[B, V], in [−2.82, 22.88].
    """
    words = random_words(seeds, positions, choices, num_tokens, purpose)
    noise = torch.empty(*words[0].shape, 4, device=seeds.device)
    for lane, word in enumerate(words):
        noise[:, :, lane] = word
    noise.mul_(-(2.0**-32)).sub_(2.0**-33).clamp_(min=-LARGEST_UNIFORM)  # −u
    return noise.log1p_().neg_().log_().neg_().flatten(1)[:, :num_tokens]


def _word(values: Tensor) -> Tensor:
    return (values & MASK)[:, None]


MIN_TEMPERATURE = 1e-6  # what lies above 0 and below is drawn from at this one: fp32 logits resolve no more


def keyed_draw(
    guided: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    threshold: Tensor | None = None,
    any_greedy: bool = True,
) -> Tensor:
    """The argmax of `guided / temperature` plus noise, over tokens with `guided >= threshold`; i64[B].

    guided: f32[B, V]. seeds, positions, choices: i64[B], see `gumbel_noise`. temperature: f32[B], 0 is greedy
    with the lowest id on a tie. threshold: f32[B]. any_greedy: False promises that no row has temperature 0.
    """
    score = gumbel_noise(seeds, positions, choices, guided.shape[1])
    if any_greedy:
        greedy = temperature == 0
        score.masked_fill_(greedy[:, None], 0)
        temperature = temperature.masked_fill(greedy, 1)
    score.addcmul_(guided, temperature.clamp(min=MIN_TEMPERATURE).reciprocal()[:, None])
    if threshold is not None:
        score.masked_fill_(guided < threshold[:, None], -torch.inf)
    return score.argmax(1)
