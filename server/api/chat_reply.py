"""Replies of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.server.api.generation import Choice
from trimtab.server.api.guidance_reply import Json, jsonable_logprob
from trimtab.server.api.replies import ReplyFormat
from trimtab.server.engine.request import ChoiceDone, Delta, TokenRecord


class ChatReply(ReplyFormat):
    """`message` and `delta`, with log-probabilities per token."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def choice(self, index: int, choice: Choice) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self.logprobs_or_none(choice.tokens, choice.offsets),
            "finish_reason": choice.finish_reason,
        }

    def opening(self, index: int) -> Json:
        return _chunk(index, {"role": "assistant", "content": ""})

    def delta(self, index: int, event: Delta) -> Json:
        return _chunk(index, {"content": event.text}, self.logprobs_or_none(event.tokens, event.offsets))

    def closing(self, index: int, event: ChoiceDone) -> Json:
        return _chunk(index, {}, finish_reason=event.finish_reason)

    def logprobs_json(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json:
        content = [
            self._entry(token.token_id, token.logprob)
            | {"top_logprobs": [self._entry(token_id, logprob) for token_id, logprob in token.top_logprobs]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> Json:
        return {
            "token": self.token_text.text(token_id),
            "logprob": jsonable_logprob(logprob),
            "bytes": list(self.token_text.bytes(token_id)),
        }


def _chunk(index: int, delta: Json, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
