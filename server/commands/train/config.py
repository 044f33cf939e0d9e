"""Options of `trimtab train`: those of a training run, and the file that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.guidance.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainCommandConfig(TrainConfig):
    """Trains a head on a frozen policy, in minutes: the policy runs once over the data, and only the head
    learns. Give the data, and the parts that are to learn from it: advantage steers, value forecasts, reward
    judges. How good each is on prompts that were held out is written to the head's manifest and shown.

    DPO on pairs, with a reward and a value beside it:

      trimtab train --name kind --model M --preferences pairs.jsonl \\
        --advantage.loss dpo --advantage.tau 0.1 --head-folder heads/kind --run-folder runs/kind

    Monte Carlo on replies that `trimtab rollouts` sampled and scored:

      trimtab train --name witty --model M --rollouts rollouts.parquet --parts value advantage \\
        --advantage.loss monte_carlo --head-folder heads/witty --run-folder runs/witty

    RLOO on replies that are sampled and scored between the updates:

      trimtab train --name witty --model M --prompts prompts.jsonl --parts advantage \\
        --advantage.loss rloo --advantage.tau 0.5 --on-policy.score function:my_rewards:wit \\
        --head-folder heads/witty --run-folder runs/witty

    A stopped run goes on with --resume. Several processes share a run's batches: torchrun --nproc-per-node 2
    -m trimtab.server.cli train, and the same flags. `trimtab train --lora --help` tells of fine-tuning the
    policy itself.

    config: a YAML file with the same names, nested as the dots are; flags count more than what it says. Every
    run writes its own as train_config.yaml.
    """

    config: Path | None = None
