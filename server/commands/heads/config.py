"""Options of what `trimtab heads` does, checked: a class for each action."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.heads.manifest import check_name
from trimtab.guidance.model_names import DEFAULT_MODEL


@dataclass(frozen=True)
class ListConfig:
    """Lists head folders: their parts, the model that each belongs to, and whether it was trained on chats or
    on texts (? where its manifest does not say).

    folders: head folders, or folders of them; the bundled heads when left out.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()


@dataclass(frozen=True)
class ShowConfig:
    """Shows everything that one head's manifest says.

    head: a head folder, or the name of a bundled head.
    """

    head: tyro.conf.Positional[Path]


@dataclass(frozen=True)
class PushConfig:
    """Publishes a head with a card, which is written from its manifest: to a folder, or to a repository of
    the hub, which is made where there is none. A head that is there already is replaced, with its card.
    Example: trimtab heads push runs/kind user/kind --report runs/eval --license mit.

    head: a head folder, or the name of a bundled head.
    destination: a repository of the hub, user/name; or a folder, where it exists or begins with . / or ~
    to_folder: take the destination for a folder, whatever it looks like.
    report: a folder that `trimtab eval` wrote, which judges this head: tables and pictures for the card.
    private: make the repository private; refuses one that is public.
    message: of the commit; by default "Head of trimtab".
    license: licence for the card, as the hub spells it; by default the card names none.
    base_model: the policy's hub id, for the card; by default its name in the manifest.
    datasets: hub ids of what the head was trained on, for the card.
    """

    head: tyro.conf.Positional[Path]
    destination: tyro.conf.Positional[str]
    to_folder: bool = False
    report: Path | None = None
    private: bool = False
    message: str = ""
    license: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True)
class PullConfig:
    """Fetches a published head, makes sure that it is whole, and puts it into a folder. Only a head's own
    files are fetched.
    Example: trimtab heads pull user/kind heads/kind, and then trimtab serve --model M --heads heads/kind.

    source: a repository of the hub, user/name, or a folder.
    destination: the head's folder; an older head there is replaced, and nothing else is.
    revision: branch, tag or commit of the repository.
    """

    source: tyro.conf.Positional[str]
    destination: tyro.conf.Positional[Path]
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportRewardConfig:
    """Writes a head's linear reward part as a transformers …ForSequenceClassification with one label: the
    model's own backbone under one score layer.
    Example: trimtab heads export-reward runs/kind --model M --out exported.

    head: a head folder, or the name of a bundled head.
    model: the causal LM that the head belongs to: `smollm2`, a folder, a hub id or a GGUF file.
    out: folder for the model; it must be empty, or not be there.
    dtype: of the backbone's weights; auto is that of the causal LM's files.
    device: where the model runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    """

    head: tyro.conf.Positional[Path]
    model: str = DEFAULT_MODEL
    out: Path
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ImportRewardConfig:
    """Makes a head with a reward part of a transformers …ForSequenceClassification with one label, whose
    backbone must be the model's own: its score layer was trained over the frozen backbone.
    Example: trimtab heads import-reward rm --model M --name kind --out heads/kind --rollouts r.parquet.

    source: folder or hub id of the classification model; safetensors only.
    model: the causal LM that the head is to measure: `smollm2`, a folder, a hub id or a GGUF file.
    name: the head's name, a quality such as `kind`.
    out: the head's folder.
    rollouts: replies of the model itself, {prompt, completion, token_ids?}: reward_mean and reward_std are
    fitted on them. Without, they are what the source's config says, or 0 and 1.
    trained_on: one line for the manifest; by default it names the source.
    device: where the model runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    show_progress: show progress bars.
    """

    source: tyro.conf.Positional[str]
    model: str = DEFAULT_MODEL
    name: str
    out: Path
    rollouts: Path | None = None
    trained_on: str = ""
    device: str = "auto"
    show_progress: bool = True
    row_options: tyro.conf.OmitArgPrefixes[RowLimits] = field(default_factory=RowLimits)

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class RescaleConfig:
    """Fits a head's scale, so that strength 1 spends 0.02 nats a token: for heads that were trained before
    that was the unit of strength, or whose replies have changed with their prompts. Nothing else is trained.
    Example: trimtab heads rescale heads/kind --model M --rollouts rollouts.parquet.

    head: a head folder, or the name of a bundled head.
    model: the causal LM that the head belongs to: `smollm2`, a folder, a hub id or a GGUF file.
    rollouts: replies of the model itself, {prompt, completion, token_ids?}, that the head was not trained on.
    out: folder for the head; by default it is changed in place.
    device: where the model runs: `cpu`, `cuda` or `cuda:1`; auto is cuda where there is one, else cpu.
    show_progress: show progress bars.
    """

    head: tyro.conf.Positional[Path]
    model: str = DEFAULT_MODEL
    rollouts: Path
    out: Path | None = None
    device: str = "auto"
    show_progress: bool = True
    row_options: tyro.conf.OmitArgPrefixes[RowLimits] = field(default_factory=RowLimits)
