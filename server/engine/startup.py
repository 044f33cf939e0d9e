"""Start-up: loads the policy and its heads as a configuration asks, checks them, and sizes the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import torch

from trimtab.guidance.errors import ModelError
from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.policy import Policy
from trimtab.guidance.rules import Expert, Tilt
from trimtab.kernels.cpu.library import begin_build
from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.experts import Experts, Models, load_experts
from trimtab.server.engine.kv_cache import bytes_per_block
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.engine.native.choose import prepare
from trimtab.server.engine.native.threads import threads_to_try
from trimtab.server.engine.policy import ServedPolicy, load_served, serve
from trimtab.server.engine.request import Guidance, Request, SamplingParams
from trimtab.server.engine.row_needs import RowNeeds
from trimtab.server.engine.sampler import Drawn, Sampler
from trimtab.server.engine.scheduler import Purpose, Row, Step

logger = logging.getLogger(__name__)


NO_MODELS: Models = MappingProxyType({})
Loaded = tuple[ServedPolicy, HeadBank, EngineConfig, Models]
"""What an Engine is made of. The configuration is resolved for the policy's device."""


def load(config: EngineConfig, chat_template: str | None = None, policy: Policy | None = None) -> Loaded:
    """The policy, its heads, and experts. chat_template: replaces the tokenizer's.

    policy: the model, loaded already on the same device. Its weights are shared where their dtype is what the
    configuration asks for.

    Raises ModelError or HeadError with one line that names the thing and the fix.
    """
    asked, config = config, _resolve(config)
    if config.cpu_backend != "torch":
        begin_build()  # beside reading, or even converting, the model
    if policy is not None and config.dtype in ("auto", str(policy.lm_head.dtype).removeprefix("torch.")):
        assert chat_template is None, "its tokenizer is in use"
        served = serve(
            policy,
            name=config.served_model_name,
            max_model_len=config.max_model_len,
        )
    else:
        served = load_served(
            config.model,
            name=config.served_model_name,
            device=config.device,
            dtype=config.dtype,
            max_model_len=config.max_model_len,
            chat_template=chat_template,
        )
    if served.device.type == "cuda":
        torch.cuda.set_device(served.device)  # of this thread, which runs the engine
    prepare(served, config)
    with threads_to_try(served.num_parameters):
        bank = HeadBank.load(
            config.heads,
            served.identity,
            device=served.device,
            dtype=served.dtype,
            vocab_size=served.vocab_size,
            vocabulary=None if served.native is None else served.native.vocabulary(),
            num_vacant=config.num_vacant_heads,
        )
    experts = load_experts(config, served)
    is_native = all(model.native is not None for model in (served, *experts.values()))
    return served, bank, _resolve(replace(asked, cpu_backend="native" if is_native else "torch")), experts


def _resolve(config: EngineConfig) -> EngineConfig:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return config.resolved(torch.device(device).type)
    except (ValueError, RuntimeError) as error:
        raise ModelError(str(error)) from error


def resolve_num_blocks(
    config: EngineConfig, policy: ServedPolicy, measure: Callable[[int], int], experts: Models = NO_MODELS
) -> int:
    """Cache blocks: what fits the memory, at most what all sequences at full length could use. A block is of
    the policy and of all experts.

    measure: blocks of so many bytes that a GPU's free memory holds; asked only where the configuration gives
    no number. Lowers the policy's max_model_len to what fits, where the user did not ask for a length.
    Raises ModelError when not even one sequence of the asked length fits.
    """
    served = (policy, *experts.values())
    block_bytes = sum(bytes_per_block(each.layers, config.block_size, each.cache_dtype) for each in served)
    affordable = config.num_blocks
    if affordable is None and config.kv_cache_gib is not None:
        affordable = int(config.kv_cache_gib * 2**30) // block_bytes
    if affordable is None:
        affordable = measure(block_bytes)
    num_tokens = (affordable - 1) * config.block_size - 1
    if num_tokens < policy.max_model_len:
        if config.max_model_len is not None or num_tokens < config.block_size:
            raise ModelError(
                f"the key/value cache holds {max(num_tokens, 0)} tokens, fewer than one sequence of "
                f"{policy.max_model_len}; raise --kv-cache-gib or lower --max-model-len"
            )
        logger.warning(
            "the context is limited to %d of the model's %d tokens; raise --kv-cache-gib for more",
            num_tokens,
            policy.max_model_len,
        )
        policy.max_model_len = num_tokens
    per_sequence = -(-(policy.max_model_len + 1) // config.block_size)
    return min(affordable, config.max_num_seqs * per_sequence + 1)


def measure_blocks(
    policy: ServedPolicy,
    bank: HeadBank,
    config: EngineConfig,
    block_bytes: int,
    experts: Models = NO_MODELS,
) -> int:
    """Cache blocks of so many bytes that fit on the policy's GPU beside the weights and the largest step."""
    device = policy.device
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_largest_step(policy, bank, config, experts)
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


def blocks_from_free_memory(
    *,
    total_bytes: int,
    free_bytes: int,
    activation_bytes: int,
    utilization: float,
    block_bytes: int,
) -> int:
    """Blocks that fit beside everything else when `utilization` of a device's memory may be in use.

    free_bytes: with the weights loaded, by whomever the rest is used. activation_bytes: what the largest
    step needs for a while. Never negative.
    """
    spare = free_bytes - activation_bytes - (1 - utilization) * total_bytes
    return max(int(spare // block_bytes), 0)


@torch.inference_mode()
def run_largest_step(
    policy: ServedPolicy, bank: HeadBank, config: EngineConfig, experts: Models = NO_MODELS
) -> Drawn:
    """As many rows and tokens as a step may have, each row asking for all there is; every key goes to the
    null block. Takes over the attention of all models."""
    config = replace(config, cuda_graphs="off")
    runner = ModelRunner(policy, config, 1, bank.memory_sizes)
    beside = Experts(experts, config, 1, runner.state)
    largest = sorted(experts, key=lambda name: -experts[name].num_parameters)
    rule = Expert(largest[0], largest[1] if len(largest) > 1 else None) if largest else Tilt()
    num_tokens = min(config.token_budget // config.max_num_seqs, policy.max_model_len)
    heads = tuple((name, 1.0) for name, has in zip(bank.names, bank.has_advantage, strict=True) if has)
    request = Request(
        "largest step",
        (0,) * num_tokens,
        SamplingParams(top_p=0.9, top_k=50, logprobs=20, frequency_penalty=0.1),
        Guidance(1.0, heads, trace=True, rule=rule),
    )
    step = Step()
    for slot in range(config.max_num_seqs):
        lane = Lane(list(request.prompt_token_ids), [NULL_BLOCK] * runner.state.max_blocks, slot=slot)
        choice = Choice(request, 0, (lane,))
        runner.state.admit(choice, 0, bank.weights_row(heads), 0.0)
        step.rows.append(Row(choice, lane, 0, num_tokens, Purpose.DRAW, (num_tokens - 1,)))
    needs = [RowNeeds.of(request, bank)] * len(step.rows)
    hidden = runner.run(step)
    return Sampler(policy, bank, runner.state, config.strict).draw(hidden, needs, experts=beside.run(step))
