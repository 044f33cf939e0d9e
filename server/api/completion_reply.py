"""Replies of /v1/completions, with the older shape of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.server.api.generation import Choice
from trimtab.server.api.guidance_reply import Json, jsonable_logprob
from trimtab.server.api.replies import ReplyFormat
from trimtab.server.engine.request import ChoiceDone, Delta, TokenRecord


class CompletionReply(ReplyFormat):
    """`text`, with log-probabilities in columns."""

    id_prefix = "cmpl"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def choice(self, index: int, choice: Choice) -> Json:
        # Tokens of a stop string are reported, and their text is cut.
        offsets = [min(offset, len(choice.text)) for offset in choice.offsets]
        logprobs = self.logprobs_or_none(choice.tokens, offsets)
        return _choice(index, choice.text, logprobs, choice.finish_reason)

    def opening(self, index: int) -> None:
        return None

    def delta(self, index: int, event: Delta) -> Json:
        return _choice(index, event.text, self.logprobs_or_none(event.tokens, event.offsets))

    def closing(self, index: int, event: ChoiceDone) -> Json:
        return _choice(index, "", finish_reason=event.finish_reason)

    def logprobs_json(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json:
        columns: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [*offsets]}
        for token in tokens:
            text = self.token_text.text(token.token_id)
            logprob = jsonable_logprob(token.logprob)
            top = {self.token_text.text(t): jsonable_logprob(value) for t, value in token.top_logprobs}
            columns["tokens"].append(text)
            columns["token_logprobs"].append(logprob)
            columns["top_logprobs"].append(top | {text: logprob})
        return columns


def _choice(index: int, text: str, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
