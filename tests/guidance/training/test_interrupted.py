"""Runs that are killed, and runs of several processes, end with the weights of an undisturbed one."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_rows import QUICK, make_rows, quick_config

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.train_head import train_head

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from trimtab.guidance.config_file import read_config
from trimtab.guidance.training.loop import PartTrainer
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.train_head import train_head

steps, compute_loss = 0, PartTrainer.compute_loss

def die(self, *args, **kwargs):
    global steps
    steps += 1
    if steps > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_loss(self, *args, **kwargs)

PartTrainer.compute_loss = die
train_head(TrainConfig(**read_config(TrainConfig, Path(sys.argv[1]))))
"""


@pytest.fixture
def config(tmp_path: Path, policy_folder: Path) -> TrainConfig:
    make_rows(tmp_path)
    return quick_config(tmp_path, policy_folder, save_every=1, parts=("reward", "advantage"))


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.head_folder / "head.safetensors")


def beside(config: TrainConfig, name: str, **changes: object) -> TrainConfig:
    folder = config.run_folder.parent.parent / name
    return dataclasses.replace(config, head_folder=folder / "head", run_folder=folder / "run", **changes)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_weights(
    config: TrainConfig, tmp_path: Path
):
    """Three steps an epoch, two epochs a part: the fifth step of the second part is in its second epoch."""
    train_head(config)
    killed = beside(config, "killed")
    (tmp_path / "killed.yaml").write_text(to_yaml(killed))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed.yaml"), "10"],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not killed.head_folder.exists()
    assert [p.name for p in (killed.run_folder / "advantage").glob("checkpoint-*")] == ["checkpoint-4"]
    torch.manual_seed(99)
    train_head(dataclasses.replace(killed, resume=True))
    for name, tensor in weights(config).items():
        assert torch.equal(tensor, weights(killed)[name]), name


@pytest.mark.slow
def test_two_processes_train_what_one_does(config: TrainConfig, tmp_path: Path):
    """Of 17 pairs in batches of 2 × 4 the last holds one, so that one process has no share of it."""
    train_head(config)
    half = dataclasses.replace(QUICK, batch_size=QUICK.batch_size // 2)
    shared = beside(
        config,
        "shared",
        reward=dataclasses.replace(config.reward, optimiser=half),
        advantage=dataclasses.replace(config.advantage, optimiser=half),
        device="cpu",
    )
    (tmp_path / "shared.yaml").write_text(to_yaml(shared))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("-m", "trimtab.server.cli", "train", "--config", str(tmp_path / "shared.yaml")),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("serve it with") == 1
    for name, tensor in weights(config).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=0, atol=1e-6)
