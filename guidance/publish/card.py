"""Cards: write the README.md of a head, and of a reward exported as a classification model, from what the
manifest says, and nothing that it does not."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData
from jinja2 import Environment, StrictUndefined

from trimtab.guidance.evaluation.table import cell
from trimtab.guidance.heads.manifest import REMEMBERING, AdvantagePart, Manifest, ScalarPart
from trimtab.guidance.heads.verdict import metrics_in, verdicts
from trimtab.guidance.publish.classifier import BIAS, MEAN, STD

if TYPE_CHECKING:
    from trimtab.guidance.publish.judgement import Judgement

TEMPLATE = "card.md.jinja"
SIDES = ("train", "held_out")
KINDS = ("pairs", "rankings", "unpaired", "rollouts", "prompts")
ACCURACIES = {
    "reward_accuracy": ("reward", "length_accuracy"),
    "advantage_accuracy": ("advantage", "length_accuracy"),
    "label_reward_accuracy": ("reward, on good and bad replies", "label_length_accuracy"),
    "label_advantage_accuracy": ("advantage, on good and bad replies", "label_length_accuracy"),
}
"""Metrics with what they are called, and the one that reads nothing but length."""
FIGURES = {
    "kl_per_reply": "KL where it was trained (nats per reply of its own)",
    "flip_rate": "tokens at which strength 1 prefers another than the policy does",
    "value_r2": "R² of the value",
    "reward_correlation": "correlation of the reward with that of the rollouts",
    "score": "score of its replies where it was trained",
    "base_score": "score of the plain policy's replies",
}
"""What other metrics are called; one that is not here goes by its own name."""
_SHARES = ("flip_rate",)
_SCALARS = {"value": "one number for every prefix", "reward": "one number for a finished reply"}


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a manifest cannot know. repository: of the hub, user/name, that the head is pulled from; None in a
    folder.

    license: as the hub spells it. base_model: the policy's hub id, where it has one. datasets: hub ids.
    """

    repository: str | None = None
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()


def render_card(
    head: Manifest, facts: CardFacts, judgement: Judgement | None = None, pictures_folder: str = ""
) -> str:
    """Markdown with the hub's YAML in front. pictures_folder: where the judgement's pictures lie, beside the
    card."""
    environment = Environment(
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    source = (files(__package__) / TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        front_matter=_front_matter(head, facts),
        head=head,
        base=_base_model(head, facts),
        purpose=_purpose(head),
        parts=_parts(head),
        units=_units(head),
        commands=_commands(head, facts),
        trained_on=f"Trained on: {_line(head.trained_on)}."
        if head.trained_on
        else "The head's manifest does not say.",
        counts=_counts(head),
        verdicts=[(part, str(verdict)) for part, verdict in verdicts(head.metrics).items()],
        accuracies=_accuracies(head),
        figures=_figures(head),
        judgement=judgement,
        pictures=[
            {"path": f"{pictures_folder}/{path.name}", "caption": caption}
            for path, caption in (judgement.pictures if judgement else ())
        ],
    )


def _front_matter(head: Manifest, facts: CardFacts) -> str:
    data = ModelCardData(
        license=facts.license,
        base_model=_base_model(head, facts),
        base_model_relation="adapter",
        library_name="trimtab",
        tags=["trimtab", *(name for name in ("advantage", "value", "reward") if getattr(head.parts, name))],
        datasets=list(facts.datasets) or None,
        metrics=["accuracy"] if _accuracies(head) else None,
    )
    return f"{data.to_yaml()}\n"


def _base_model(head: Manifest, facts: CardFacts) -> str:
    return facts.base_model or head.base_model.name


def _purpose(head: Manifest) -> str:
    steers = "its advantage steers every token that the model samples" if head.parts.advantage else ""
    measures = [name for name in ("value", "reward") if getattr(head.parts, name)]
    measured = {"value": "what is written so far", "reward": "finished replies"}
    measuring = " and ".join(f"its {name} measures {measured[name]}" for name in measures)
    return "; ".join(part for part in (steers, measuring) if part) + "."


def _parts(head: Manifest) -> list[tuple[str, str, str, str]]:
    rows = []
    if head.parts.advantage is not None:
        rows.append(("advantage", *_advantage(head.parts.advantage)))
    for name in ("value", "reward"):
        part = getattr(head.parts, name)
        if part is not None:
            rows.append((name, _form(part), part.loss or "-", _SCALARS[name]))
    return rows


def _advantage(part: AdvantagePart) -> tuple[str, str, str]:
    slope = part.value_per_advantage
    told = "one number for every next token" + f", times a scale of {part.scale:.3g}"
    if part.kl_per_token is not None:
        told += f"; strength 1 spends {part.kl_per_token:.3g} nats a token of given replies"
    if part.optimum is not None:
        told += f"; it was trained at strength {part.optimum:.3g}"
    if slope is not None:
        told += f"; a unit of it raises the value by {slope:.3g}"
    trained = f"{part.loss}, τ = {part.tau:g}" if part.loss else "-"
    return f"{part.form}, rank {part.rank}, {part.activation}", trained, told


def _form(part: ScalarPart) -> str:
    form = part.form if part.form == "linear" else f"{part.form}, {part.width} wide, {part.activation}"
    form += f", {part.units} remembered" if part.form in REMEMBERING else ""
    return f"{form}, {part.bins} bins from {part.low:g} to {part.high:g}" if part.bins else form


def _units(head: Manifest) -> str:
    if head.parts.value is None and head.parts.reward is None:
        return "It has no value and no reward: it measures nothing."
    if (head.reward_mean, head.reward_std) == (0.0, 1.0):
        return "Rewards and values are in raw units (mean 0 and standard deviation 1 in the manifest)."
    return (
        "Rewards and values are in standard units of the policy's own replies: 0 is their average, 1 is one "
        f"standard deviation better (raw: mean {head.reward_mean:.4g}, deviation {head.reward_std:.4g})."
    )


def _commands(head: Manifest, facts: CardFacts) -> list[str]:
    local = f"./{head.name}"
    first = ["show", local] if facts.repository is None else ["pull", facts.repository, local]
    return [
        shlex.join(["trimtab", "heads", *first]),
        shlex.join(["trimtab", "serve", "--model", _base_model(head, facts), "--heads", local]),
    ]


def _counts(head: Manifest) -> list[tuple[str, str, str]]:
    rows = []
    for kind in KINDS:
        numbers = [head.metrics.get(f"{side}_{kind}") for side in SIDES]
        if any(number is not None for number in numbers):
            rows.append((kind, *("-" if number is None else f"{number:.0f}" for number in numbers)))
    return rows  # type: ignore[return-value]


def _accuracies(head: Manifest) -> list[tuple[str, str, str]]:
    return [
        (title, f"{head.metrics[name]:.1%}", f"{head.metrics[length]:.1%}" if length in head.metrics else "-")
        for name, (title, length) in ACCURACIES.items()
        if name in head.metrics
    ]


def _figures(head: Manifest) -> list[tuple[str, str]]:
    counts = {f"{side}_{kind}" for side in SIDES for kind in KINDS}
    lengths = {length for name, (_, length) in ACCURACIES.items() if name in head.metrics}
    told = counts | lengths | ACCURACIES.keys() | metrics_in(head.metrics)
    shown = [name for name in head.metrics if name not in told]
    return [(FIGURES.get(name, name), _number(name, head.metrics[name])) for name in shown]


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name in _SHARES else f"{value:.4g}"


def _line(text: str) -> str:
    return " ".join(text.split())


_EXPORT_TEXT = """\
# Reward of the head {name}

`{architecture}` with one label: the backbone of `{base}`, untouched, under a score layer with the weights of
the head's linear reward part.

- Feed it the prompt as the chat template renders it up to the reply, then the reply, then the token that
  ends a reply, {ends}, and nothing after that: the score is read at the last token that is not padding.
- {padding}
- Its logit is the raw reward without its bias, {bias:.6g} (`{bias_key}` in config.json), for which a score
  layer has no place: a constant changes no preference.
- In standard units of the policy's own replies the reward is `(logit + {bias_key} - {mean_key}) / {std_key}`,
  with mean {mean:.6g} and standard deviation {std:.6g}.
"""
_EXPORT_PADDING = (
    "Pad with `{token}`, as the tokenizer here does: with one that ends replies, their end would go unread."
)
_EXPORT_NO_PADDING = (
    "Score one reply at a time: the tokenizer has no token to pad with that does not also end replies."
)


def render_export_card(
    manifest: Manifest, *, architecture: str, pad_token: str | None, ends: list[str], bias: float
) -> str:
    """Markdown. pad_token: None where rows cannot be padded. ends: tokens that end a reply."""
    return _EXPORT_TEXT.format(
        name=manifest.name,
        architecture=architecture,
        base=manifest.base_model.name,
        ends=" or ".join(f"`{token}`" for token in ends),
        padding=_EXPORT_NO_PADDING if pad_token is None else _EXPORT_PADDING.format(token=pad_token),
        bias=bias,
        bias_key=BIAS,
        mean_key=MEAN,
        std_key=STD,
        mean=manifest.reward_mean,
        std=manifest.reward_std,
    )
