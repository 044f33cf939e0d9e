"""The cases of each part, the most important first: what no time is left for is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.server.gpu.case import Case
from trimtab.server.gpu.kernel_checks.attention import check_paged_attention, check_store_kv
from trimtab.server.gpu.kernel_checks.draw_statistics import check_draws_follow_the_tilt
from trimtab.server.gpu.kernel_checks.guided_logits import check_guided_logits
from trimtab.server.gpu.kernel_checks.value_adapter import check_value_adapter
from trimtab.server.gpu.sizes import TOY_KERNEL_SIZES, KernelSizes


@dataclass(frozen=True, slots=True)
class Part:
    """sizes: on the GPU. toy: in a rehearsal."""

    cases: Mapping[str, Case]
    sizes: object
    toy: object


KERNELS = {
    "guided_logits": Case("check", check_guided_logits, 60),
    "value_adapter": Case("check", check_value_adapter, 60),
    "store_kv": Case("check", check_store_kv, 30),
    "paged_attention": Case("check", check_paged_attention, 120),
    "draws follow the tilt": Case("check", check_draws_follow_the_tilt, 30),
}

PARTS = {"kernels": Part(KERNELS, KernelSizes(), TOY_KERNEL_SIZES)}
