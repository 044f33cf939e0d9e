"""Work size: tokens that a run does before it keeps them, some seconds' worth: as much as a kill loses."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.features.layout import FeaturePlan, PositionChoice, plan_features
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.server.engine.policy import ServedPolicy

MIN_PARTS = 8  # of a run, as far as there is anything to do
MAX_PARTS = 1024  # of a run, however much: each is a file
MIN_ROWS = 16  # replies that are sampled side by side: 8 take twice the time of 32 on a CPU, for each token
_LEAST = 256  # tokens: less is not worth a file
_WORK = {"cpu": 2**39, "cuda": 2**48}  # floating-point operations that take some seconds
_MOST = {"cpu": 2**13, "cuda": 2**16}  # tokens: of a small model the steps cost, not the arithmetic


def tokens_at_once(policy: ServedPolicy, num_tokens: int) -> int:
    """Tokens of the run's num_tokens that are run over before they are kept.

    It follows from the policy, the kind of device and the rows, never from a clock: bits depend on what is
    run together, and a resumed run must have the same.
    """
    kind = "cpu" if policy.device.type == "cpu" else "cuda"
    affordable = min(_WORK[kind] // (2 * policy.num_parameters), _MOST[kind])
    return max(1, min(affordable, max(_LEAST, -(-num_tokens // MIN_PARTS))), num_tokens // MAX_PARTS)


def plan_by_work(
    replies: Sequence[EncodedReply], choice: PositionChoice, policy: ServedPolicy
) -> FeaturePlan:
    """What a feature store of the replies will hold, in shards of so much work."""
    num_tokens = sum(reply.num_tokens for reply in dict.fromkeys(replies))
    return plan_features(
        replies,
        choice,
        hidden_size=policy.identity.hidden_size,
        dtype=policy.dtype,
        shard_tokens=tokens_at_once(policy, num_tokens),
    )
