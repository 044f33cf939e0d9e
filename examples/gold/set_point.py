"""Set-points of the gold task: how often a reply's value ends where the controller `target` is to bring it.

`python -m examples.gold.set_point runs/gold/heads/whole runs/gold/judge.jsonl --out runs/gold/set-point`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from examples.gold.reward import score
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.data.load import load_prompt_rows
from trimtab.guidance.data.options import EncodedRows
from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.files import write_bytes, write_json
from trimtab.guidance.plot_style import LIGHT, as_png, dress, legend, new_figure
from trimtab.guidance.statistics import Estimate, Floats, PerPrompt, resample_prompts
from trimtab.guidance.text.encoding import ReplyEncoder
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion
from trimtab.server.flags import parse
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample

TOLERANCE = 0.25


@dataclass(frozen=True)
class SetPointConfig:
    """Draws replies under `target` at each set-point, and under constant strengths, and compares at equal KL
    how many end within a quarter of a standard unit of the set-point, or beyond it.

    head: with an advantage and a value. prompts: rows {prompt}. strength: what the controller may use at
    most. constants: strengths whose replies it is compared with, linearly in √KL between them.
    """

    head: tyro.conf.Positional[Path]
    prompts: tyro.conf.Positional[Path]
    model: str = "../shared/models/stories656K"
    out: Path = Path("runs/gold/set-point")
    set_points: tuple[float, ...] = (0.5, 1.0)
    strength: float = 4.0
    horizon: int = 16
    constants: tuple[float, ...] = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
    num_replies: int = 4
    max_tokens: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """Replies at one setting. values: V before each token of each. last, kl, gold: of each."""

    name: str
    prompts: Floats
    values: Sequence[Floats]
    last: Floats
    kl: Floats
    gold: Floats

    def reached(self, set_point: float) -> Floats:
        return (self.last >= set_point - TOLERANCE).astype(np.float64)


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("set_point"):
        given = sys.argv[1:] if args is None else args
        run(parse(SetPointConfig, "python -m examples.gold.set_point", given))


def run(config: SetPointConfig) -> None:
    engine = Engine.from_config(EngineConfig(config.model, heads=(config.head,), max_num_seqs=256))
    head = engine.info.heads[0].name
    encoder = ReplyEncoder(engine.policy.tokenizer, "text", end_ids=engine.policy.eos_token_ids)
    rows = load_prompt_rows(config.prompts, EncodedRows(), as_text=True).rows
    prompts = [EncodedPrompt(i, row.prompt, encoder.prompt_ids(row.prompt)) for i, row in enumerate(rows)]
    plan = SamplePlan(
        config.num_replies, config.max_tokens, seed=config.seed, heads=((head, 1.0),), trace=True
    )

    def draw(name: str, plan: SamplePlan) -> Drawn:
        return _drawn(name, sample(engine, map(plan.request, prompts), name), prompts, head)

    plain = draw("plain", plan)
    constants = [draw(f"strength {s:g}", replace(plan, strength=s)) for s in config.constants]
    found = []
    for at in config.set_points:
        target = (Target(head, at, config.horizon),)
        held = draw(f"target {at:g}", replace(plan, strength=config.strength, controllers=target))
        found.append(compare(at, held, [plain, *constants], len(prompts), config.seed))
        print(json.dumps(found[-1]))
        nearest = min(constants, key=lambda one: abs(one.kl.mean() - held.kl.mean()))
        picture = plot(at, [plain, nearest, held])
        write_bytes(config.out / f"set-point-{at:g}.png", as_png(picture))
    write_json(config.out / "set-points.json", {"set_points": found})


def _drawn(
    name: str, completions: Sequence[Completion], prompts: Sequence[EncodedPrompt], head: str
) -> Drawn:
    text_of = {str(prompt.number): str(prompt.prompt) for prompt in prompts}
    values = [
        np.array([dict(token.trace.value)[head] for token in done.tokens if token.trace])
        for done in completions
    ]
    return Drawn(
        name,
        np.array([int(done.request.request_id) for done in completions]),
        values,
        np.array([each[-1] for each in values]),
        np.array([done.summary.kl for done in completions]),
        np.array([score(text_of[done.request.request_id], done.text) for done in completions]),
    )


def compare(
    at: float, held: Drawn, constants: Sequence[Drawn], num_prompts: int, seed: int = 0
) -> dict[str, object]:
    """Shares that reach the set-point, with 95 % intervals by bootstrap over prompts: under the controller,
    at a constant strength of the same KL, and the difference, resample by resample."""
    draws = resample_prompts(num_prompts, seed=seed)

    def means(one: Drawn, numbers: Floats) -> Floats:
        per = PerPrompt.of(one.prompts, numbers, num_prompts)
        return np.append(per.mean, per.resampled(draws))

    def at_equal_kl(read: str) -> tuple[Floats, Floats]:
        def numbers(one: Drawn) -> Floats:
            return one.reached(at) if read == "reached" else one.gold

        kls = np.stack([np.sqrt(means(one, one.kl)) for one in constants], 1)
        found = np.stack([means(one, numbers(one)) for one in constants], 1)
        price = np.sqrt(means(held, held.kl))
        rival = np.array([np.interp(p, x, y) for p, x, y in zip(price, kls, found, strict=True)])
        return means(held, numbers(held)), rival

    told: dict[str, object] = {"set_point": at, "kl": _estimate(means(held, held.kl))}
    for read in ("reached", "gold"):
        mine, rival = at_equal_kl(read)
        told[read] = {
            "target": _estimate(mine),
            "constant": _estimate(rival),
            "difference": _estimate(mine - rival),
        }
    return told


def _estimate(numbers: Floats) -> dict[str, float]:
    low, high = np.quantile(numbers[1:], (0.025, 0.975))
    one = Estimate(float(numbers[0]), float(low), float(high))
    return {"mean": round(one.mean, 4), "low": round(one.low, 4), "high": round(one.high, 4)}


def plot(at: float, drawn: Sequence[Drawn]) -> Figure:
    """V over tokens: the median reply, and what four fifths lie between."""
    figure = new_figure(LIGHT, 7.5, 4.2)
    axes = figure.subplots()
    for one, colour in zip(drawn, LIGHT.colours, strict=False):
        longest = max(map(len, one.values))
        padded = np.full((len(one.values), longest), np.nan)
        for row, values in zip(padded, one.values, strict=True):
            row[: len(values)] = values
        many = (~np.isnan(padded)).sum(0) >= 20  # of fewer replies a quantile says little
        low, middle, high = np.nanquantile(padded[:, many], (0.1, 0.5, 0.9), axis=0)
        tokens = np.arange(many.sum())
        axes.plot(tokens, middle, color=colour, linewidth=1.4, label=f"{one.name}, {one.kl.mean():.2f} nats")
        axes.fill_between(tokens, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(at, color=LIGHT.text, linewidth=0.8, linestyle=":")
    title = f"V over the reply, set-point {at:g}: median, and 10 % to 90 %"
    dress(axes, LIGHT, x="token of the reply", y="V (standard units)", title=title)
    legend(axes, LIGHT)
    return figure


if __name__ == "__main__":
    main()
