"""The frontier harness over an engine of our own, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trimtab.guidance.data import load_prompts
from trimtab.guidance.encoding import encode_prompt
from trimtab.guidance.evaluation.frontier import frontier
from trimtab.guidance.evaluation.plot import plot_frontier
from trimtab.guidance.evaluation.reply import Heads, Reply, Sample, Score
from trimtab.guidance.message import Prompt
from trimtab.server.commands.errors import UserError
from trimtab.server.commands.frontier import FrontierConfig
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.offline import Completion, generate
from trimtab.server.engine.policy import ModelError
from trimtab.server.engine.request import Guidance, Request, SamplingParams


def run(
    config: FrontierConfig, engine_config: EngineConfig, weights: Mapping[str, float], score: Score
) -> str:
    """Samples, judges and writes the results; returns the table and where they lie.

    Raises UserError, HeadError, PolicyError, DataError or InvalidRequestError with one line.
    """
    prompts = {_label(prompt): prompt for prompt in load_prompts(config.prompts).rows}
    chosen = dict(list(prompts.items())[: config.num_prompts])
    try:
        engine = Engine.from_config(engine_config)
    except ModelError as error:
        raise UserError(str(error)) from error
    heads = tuple(weights.items()) or tuple((name, 1.0) for name in engine.bank.names)
    sampling = SamplingParams(
        max_tokens=config.max_tokens, temperature=config.temperature, n=config.num_replies
    )
    report = frontier(
        sampler(engine, chosen, sampling, config.seed),
        score,
        list(chosen),
        heads=heads,
        strengths=config.strengths,
        seed=config.seed,
    )
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "frontier.json").write_text(report.to_json(), encoding="utf-8")
    (config.out / "frontier.md").write_text(report.to_markdown(), encoding="utf-8")
    plot_frontier(report, config.out / "frontier.png")
    return f"{report.to_markdown()}\nwritten to {config.out}: frontier.json, frontier.md, frontier.png\n"


def sampler(engine: Engine, prompts: Mapping[str, Prompt], sampling: SamplingParams, seed: int) -> Sample:
    """Replies from the engine to prompts by their label. Each prompt has noise of its own, the same at every
    strength, so that strengths are compared on equal terms."""
    encoded = {label: encode_prompt(engine.policy.tokenizer, prompt) for label, prompt in prompts.items()}
    seeded = {label: replace(sampling, seed=(seed << 32) + i) for i, label in enumerate(prompts)}

    def sample(labels: Sequence[str], heads: Heads, strength: float) -> list[Reply]:
        guidance = Guidance(strength, heads)
        requests = [Request(label, encoded[label], seeded[label], guidance) for label in labels]
        completions = generate(engine, requests, progress=f"strength {strength:g}")
        return [reply for completion in completions for reply in _replies(completion)]

    return sample


def _replies(completion: Completion) -> list[Reply]:
    replies = []
    for choice in completion.choices:
        assert choice.summary is not None
        assert choice.finish_reason is not None
        replies.append(
            Reply(
                completion.request.request_id,
                choice.text,
                tuple(choice.token_ids),
                choice.summary.kl,
                choice.finish_reason,
            )
        )
    return replies


def _label(prompt: Prompt) -> str:
    """What the judge is shown: a string as it is, a conversation by its users' words."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.content for message in prompt if message.role == "user")
