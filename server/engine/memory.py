"""How much of a GPU's memory is left for the key/value cache, found by running the largest step."""

from __future__ import annotations

import dataclasses

import torch

from trimtab.guidance.heads.bank import HeadBank
from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.cache_size import blocks_from_free_memory
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.policy import Policy
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Drawn, Sampler
from trimtab.server.engine.scheduler import Purpose, Row, Step


def measure_blocks(policy: Policy, bank: HeadBank, config: EngineConfig, block_bytes: int) -> int:
    """Cache blocks of so many bytes that fit on the policy's GPU beside the weights and the largest step."""
    device = policy.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_largest_step(policy, bank, config)
    torch.cuda.synchronize(device)
    activation_bytes = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return blocks_from_free_memory(
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        activation_bytes=activation_bytes,
        utilization=config.gpu_memory_utilization,
        block_bytes=block_bytes,
    )


@torch.inference_mode()
def run_largest_step(policy: Policy, bank: HeadBank, config: EngineConfig) -> Drawn:
    """As many rows and tokens as a step may have, each row asking for all there is; every key goes to the
    null block. Takes over the policy's attention."""
    runner = ModelRunner(policy, dataclasses.replace(config, cuda_graphs="off"), 1, len(bank.names))
    num_tokens = min(config.token_budget // config.max_num_seqs, policy.max_model_len)
    heads = tuple((name, 1.0) for name, has in zip(bank.names, bank.has_advantage, strict=True) if has)
    request = Request(
        "largest step",
        (0,) * num_tokens,
        SamplingParams(top_p=0.9, top_k=50, logprobs=20, frequency_penalty=0.1),
        Guidance(1.0, heads, trace=True),
    )
    step = Step()
    for slot in range(config.max_num_seqs):
        lane = Lane(list(request.prompt_token_ids), [NULL_BLOCK] * runner.state.max_blocks, slot=slot)
        choice = Choice(request, 0, (lane,))
        runner.state.admit(choice, 0, bank.weights_row(heads), 0.0)
        step.rows.append(Row(choice, lane, 0, num_tokens, Purpose.DRAW, (num_tokens - 1,)))
    needs = [RowNeeds.of(request, bank)] * len(step.rows)
    return Sampler(policy, bank, runner.state, config.strict).draw(runner.run(step), needs)
