"""Features of rollouts from the engine that samples them: kept with each part, put together at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.features.layout import MANIFEST_FILE, PositionChoice
from trimtab.guidance.features.source import Positions
from trimtab.guidance.features.store import check_destination, write_features
from trimtab.guidance.files import write_bytes
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.server.commands.rollouts.partial import Partial
from trimtab.server.commands.work_size import plan_by_work
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.state_recorder import StateRecorder


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    start: int
    end: int


class FeatureKeeper:
    """Of one run of `trimtab rollouts`. policy, recorder: of the engine that samples. encoder: of prompts."""

    def __init__(
        self, policy: ServedPolicy, recorder: StateRecorder, partial: Partial, encoder: ReplyEncoder
    ) -> None:
        self._policy, self._recorder, self._partial = policy, recorder, partial
        self._encoder = encoder

    def keep(self, number: int, rows: Sequence[RolloutRow]) -> None:
        """Writes what was recorded of a part's replies; whole or not at all."""
        lengths = {(str(row.prompt_id), row.sample): len(self._encode(row).reply_ids) + 1 for row in rows}
        states = self._recorder.collect(lengths)
        data = save({"h": torch.cat([states[key] for key in lengths])})
        write_bytes(self._partial.features_of(number), data)

    def write(self, parts: Sequence[Sequence[RolloutRow]], folder: Path) -> str:
        """Writes the store that `trimtab features --positions all` would write of the parts' rows; returns
        what a user is told. Raises DataError; what was written before stays whole."""
        places = self._places(parts)
        plan = plan_by_work(list(places), PositionChoice("all"), self._policy)

        def extract(
            replies: Sequence[EncodedReply], positions: Positions | None
        ) -> Iterator[tuple[int, Tensor]]:
            for index, reply in enumerate(replies):
                yield index, _read(places[reply])

        write_features(folder, plan, self._policy.identity.base_model, extract, resume=True)
        return f"features of {plan.num_replies} different replies written to {folder}"

    def _places(self, parts: Sequence[Sequence[RolloutRow]]) -> Mapping[EncodedReply, _Place]:
        """Of each reply where it is first."""
        places: dict[EncodedReply, _Place] = {}
        for number, rows in enumerate(parts):
            start = 0
            for row in rows:
                reply = self._encode(row)
                end = start + len(reply.reply_ids) + 1
                places.setdefault(reply, _Place(self._partial.features_of(number), start, end))
                start = end
        return places

    def _encode(self, row: RolloutRow) -> EncodedReply:
        """As training asks for it."""
        return self._encoder.encode(row.prompt, row.completion, Sampled(row.token_ids, row.is_cut))


def check_features(folder: Path, *, is_begun: bool) -> None:
    """Before any work: raises DataError where `folder` holds something. is_begun: by an earlier run of the
    same command, which may have begun to write it."""
    check_destination(folder, resume=is_begun and (folder / MANIFEST_FILE).is_file())


def _read(place: _Place) -> Tensor:
    with safe_open(place.path, framework="pt") as tensors:
        h: Tensor = tensors.get_slice("h")[place.start : place.end]
    return h
