"""Whether a causal-LM type is served right: a tiny model of it, by the engine and by its own forward."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tiny_configs import NEAR, Reach, tiny_config
from tiny_models import byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from trimtab.guidance.errors import ModelError
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

NUM_NEW = 24
TOLERANCE = 2e-4  # nats: types served right reach 4e-5


@dataclass(frozen=True, slots=True)
class Outcome:
    """detail: the reason, or what differs by how much."""

    kind: Literal["right", "refused", "wrong", "unbuilt"]
    detail: str = ""


def outcome_of(
    model_type: str, folder: Path, reach: Reach = NEAR, config: dict[str, Any] | None = None, **options: Any
) -> Outcome:
    """Build the type tiny in `folder` and compare. config, options: of the model and of the engine.

    Raises what the engine raises besides ModelError: such a refusal would be a traceback to the user.
    """
    try:
        tiny = tiny_config(model_type, reach, **(config or {}))
        reference = _save(tiny, folder)
    except Exception as error:
        return Outcome("unbuilt", f"{type(error).__name__}: {' '.join(str(error).split())}")
    try:
        engine = Engine.from_config(
            EngineConfig(
                folder,
                max_num_seqs=8,
                block_size=8,
                max_num_batched_tokens=48,
                max_model_len=reach.longest,
                **options,
            )
        )
    except ModelError as refusal:
        return Outcome("refused", str(refusal))
    return _compare(engine, reference, reach)


def _save(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """A random model whose logits are spread out, so that replies differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(4 if "embed" in name or "wte" in name else 2)
    _own_logits(model, list(range(6, 26)))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def _compare(engine: Engine, reference: PreTrainedModel, reach: Reach) -> Outcome:
    rng = random.Random(1)
    greedy = SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True)
    requests = [
        Request(str(i), tuple(rng.randrange(6, 250) for _ in range(length)), greedy)
        for i, length in enumerate((reach.original + 1, 5 * reach.original // 2, reach.longest - NUM_NEW - 3))
    ]
    completions = sample(engine, requests)
    again = dataclasses.replace(requests[-1], request_id="again", prompt_token_ids=_branch(requests[-1]))
    completions += sample(engine, [again])  # from the prefix cache
    worst = max(_error(completion, reference) for completion in completions)
    if worst <= TOLERANCE:
        return Outcome("right", f"{worst:.1g}")
    return Outcome("wrong", f"log-probabilities differ by {worst:.2g} nats")


def _branch(request: Request) -> tuple[int, ...]:
    """Its prompt up to near the end, and then other tokens."""
    prompt = request.prompt_token_ids
    return (*prompt[:-5], *reversed(prompt[-5:]))


def _error(completion: Completion, reference: PreTrainedModel) -> float:
    """How far each token's log-probability, and its being the best one, are from the model's own."""
    reply = completion.tokens
    prompt = list(completion.request.prompt_token_ids)
    logits = _own_logits(reference, prompt + [token.token_id for token in reply])
    own = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    taken = own.gather(1, torch.tensor([[token.token_id] for token in reply]))[:, 0]
    stated = torch.tensor([token.logprob for token in reply])
    worst = max((taken - stated).abs().max(), (own.max(-1).values - taken).max())
    return float(worst.nan_to_num(nan=torch.inf))


@torch.no_grad()
def _own_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """[T, V], finite, from nothing but the tokens."""
    logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    assert logits.isfinite().all()
    return logits
