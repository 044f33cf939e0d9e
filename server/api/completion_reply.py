"""Replies of /v1/completions, with the older shape of log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from trimtab.server.api.generation import Choice
from trimtab.server.api.guidance_reply import Json, jsonable_logprob
from trimtab.server.api.reply import ReplyFormat
from trimtab.server.api.token_text import TokenText
from trimtab.server.engine.request import ChoiceDone, Delta, TokenRecord


class CompletionReply(ReplyFormat):
    """`text`, with log-probabilities in columns. Keeps count of the characters that were sent."""

    id_prefix = "cmpl"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def __init__(self, model: str, token_text: TokenText, *, logprobs: bool, trace: bool) -> None:
        super().__init__(model, token_text, logprobs=logprobs, trace=trace)
        self._offset: defaultdict[int, int] = defaultdict(int)

    def choice(self, index: int, choice: Choice) -> Json:
        logprobs = self.logprobs_or_none(index, choice.tokens)
        return _choice(index, choice.text, logprobs, choice.finish_reason)

    def opening(self, index: int) -> None:
        return None

    def delta(self, index: int, event: Delta) -> Json:
        return _choice(index, event.text, self.logprobs_or_none(index, event.tokens))

    def closing(self, index: int, event: ChoiceDone) -> Json:
        return _choice(index, "", finish_reason=event.finish_reason)

    def logprobs_json(self, index: int, tokens: Iterable[TokenRecord]) -> Json:
        """Continues the choice's offsets, in characters of its tokens' texts, where the last call ended."""
        columns: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = self.token_text.text(token.token_id)
            logprob = jsonable_logprob(token.logprob)
            top = {self.token_text.text(t): jsonable_logprob(value) for t, value in token.top_logprobs}
            columns["tokens"].append(text)
            columns["token_logprobs"].append(logprob)
            columns["top_logprobs"].append(top | {text: logprob})
            columns["text_offset"].append(self._offset[index])
            self._offset[index] += len(text)
        return columns


def _choice(index: int, text: str, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
