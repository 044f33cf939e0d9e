"""One process of an on-policy run with a SlowWriter: python on_policy_process.py CONFIG.yaml [SCORE]"""

from __future__ import annotations

import sys
from pathlib import Path

from on_policy_cases import SlowWriter, count_wanted

from trimtab.guidance.config_file import read_config
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.processes import end_processes
from trimtab.guidance.training.train_head import train_head

if __name__ == "__main__":
    config = TrainConfig(**read_config(TrainConfig, Path(sys.argv[1])))
    policy = load_policy(config.model)
    train_head(config, policy=policy, writer=SlowWriter(policy, count_wanted))
    end_processes()
