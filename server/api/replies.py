"""Replies over HTTP: write the frame that all share, chat completions, text completions, and guidance."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from trimtab.server.api.generation import Usage
from trimtab.server.api.readings.prompts import PromptReading
from trimtab.server.api.readings.reasoning import ReasoningSplitter, ReasoningTags
from trimtab.server.api.selection import Chosen
from trimtab.server.api.tokens import TokenText, jsonable_logprob
from trimtab.server.api.tools.choice import ToolChoiceReader
from trimtab.server.api.tools.use import ToolUse
from trimtab.server.engine.request import ChoiceDone, Completion, Delta, GuidanceSummary, TokenRecord

Json = dict[str, Any]


def summary_json(summary: GuidanceSummary) -> Json:
    """Of one choice; `value` and `reward` by head, in standard units; `rule` where that reports of itself."""
    found: Json = {
        "kl": summary.kl,
        "mean_strength": summary.mean_strength,
        "value": dict(summary.value),
        "reward": dict(summary.reward),
        "flips": summary.flips,
    }
    if summary.rule:
        found["rule"] = dict(summary.rule)
    if summary.steps:
        found["steps"] = [{"tokens": step.num_tokens, "value": dict(step.value)} for step in summary.steps]
    return found


def trace_json(tokens: Iterable[TokenRecord], token_text: TokenText) -> list[Json]:
    """One entry per token that carries a trace."""
    return [
        {
            "token": token_text.text(token.token_id),
            "value": dict(token.trace.value),
            "kl": token.trace.kl,
            "strength": token.trace.strength,
            "entropy": token.trace.entropy,
            "logprob": jsonable_logprob(token.logprob),
            "base_logprob": jsonable_logprob(token.trace.base_logprob),
            "flip": token.trace.flip,
            "base_top": [
                {"token": token_text.text(token_id), "logprob": jsonable_logprob(logprob)}
                for token_id, logprob in token.trace.base_top
            ],
        }
        | ({} if token.trace.part is None else {"part": token.trace.part})
        for token in tokens
        if token.trace is not None
    ]


class ReplyFormat(ABC):
    """Turns what the engine reports into OpenAI's JSON. One per HTTP request.

    id_prefix, object_name, chunk_object_name: OpenAI's names for this kind of reply.
    """

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def __init__(self, model: str, token_text: TokenText, *, logprobs: bool, trace: bool) -> None:
        self.reply_id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.token_text = token_text
        self.logprobs = logprobs
        self.trace = trace
        self._frame = {"id": self.reply_id, "created": int(time.time()), "model": model}

    def reply(self, chosen: Sequence[Chosen], usage: Usage) -> Json:
        """A whole reply."""
        rendered = [
            self.choice(index, one.completion)
            | {"stop_reason": one.completion.stop_reason, "guidance": self._guidance(one)}
            for index, one in enumerate(chosen)
        ]
        return {**self._frame, "object": self.object_name, "choices": rendered, "usage": usage_json(usage)}

    def chunk(self, *choices: Json, **more: Any) -> Json:
        """One chunk of a streamed reply."""
        return {**self._frame, "object": self.chunk_object_name, "choices": list(choices), **more}

    @property
    def says_text_alone(self) -> bool:
        """Whether two chunks of a choice differ in their text alone, and one without any says nothing."""
        return not (self.logprobs or self.trace)

    def delta_choice(self, index: int, event: Delta) -> Json | None:
        """A chunk's choice with new text and its tokens' entries; None when there is nothing to say."""
        choice, is_new = self.delta(index, event)
        if not (is_new or (event.tokens and (self.logprobs or self.trace))):
            return None
        if self.trace:
            choice["guidance"] = {"trace": trace_json(event.tokens, self.token_text)}
        return choice

    def last_choice(self, index: int, event: ChoiceDone) -> Json:
        """A choice's last chunk: why it ended, and the summary."""
        more = {"stop_reason": event.stop_reason, "guidance": summary_json(event.summary)}
        return self.closing(index, event) | more

    def logprobs_or_none(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json | None:
        """None when the request did not ask for them."""
        return self.logprobs_json(tokens, offsets) if self.logprobs else None

    def _guidance(self, chosen: Chosen) -> Json:
        guidance = summary_json(chosen.completion.summary)
        if chosen.vote is not None:
            guidance["vote"] = asdict(chosen.vote)
        if self.trace:
            guidance["trace"] = trace_json(chosen.completion.tokens, self.token_text)
        return guidance

    @abstractmethod
    def choice(self, index: int, completion: Completion) -> Json:
        """A whole choice, without its guidance."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The choice of a stream's first chunk, where this kind has one."""

    @abstractmethod
    def delta(self, index: int, event: Delta) -> tuple[Json, bool]:
        """A chunk's choice with what is new, and whether anything is."""

    @abstractmethod
    def closing(self, index: int, event: ChoiceDone) -> Json:
        """The choice of a stream's last chunk, without its guidance."""

    @abstractmethod
    def logprobs_json(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json:
        """Log-probabilities of the tilt. offsets: where in the choice's text each token begins."""


def usage_json(usage: Usage) -> Json:
    """OpenAI's `usage`, and beside it how many tokens the model was run on."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "computed_tokens": usage.computed,
    }


class ChatFormat(ReplyFormat):
    """`message` and `delta`, with log-probabilities per token."""

    id_prefix = "chatcmpl"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    prompt: PromptReading | None = None
    num_prompt_top = 0

    def __init__(
        self,
        model: str,
        token_text: TokenText,
        *,
        logprobs: bool,
        trace: bool,
        tools: ToolUse | None = None,
        reasoning: ReasoningTags | None = None,
        reasons: bool = False,
    ) -> None:
        """tools: what the replies may call. reasoning: of a model that thinks between tags; reasons: replies
        begin within them."""
        super().__init__(model, token_text, logprobs=logprobs, trace=trace)
        self._tools = tools
        self._readers: dict[int, ToolChoiceReader] = {}
        self._reasoning, self._reasons = reasoning, reasons
        self._splitters: dict[int, ReasoningSplitter] = {}

    def reply(self, chosen: Sequence[Chosen], usage: Usage) -> Json:
        reply = super().reply(chosen, usage)
        if self.prompt is None:
            return reply
        return {**reply, "prompt_logprobs": self.prompt.entries(self.num_prompt_top, self.token_text)}

    def choice(self, index: int, completion: Completion) -> Json:
        thought: Json = {}
        answer = completion
        if (splitter := self._splitter()) is not None:
            reasoning, answer = splitter.whole(completion)
            thought = {"reasoning_content": reasoning} if reasoning else {}
        said: Json = {"content": answer.text}
        finish_reason: str = completion.finish_reason
        if self._tools is not None:
            reader = self._tools.reader()
            said = reader.message(answer)
            finish_reason = reader.finish_reason(completion.finish_reason)
        return {
            "index": index,
            "message": {"role": "assistant", **said, **thought, "refusal": None},
            "logprobs": self.logprobs_or_none(completion.tokens, completion.offsets),
            "finish_reason": finish_reason,
        }

    def _splitter(self) -> ReasoningSplitter | None:
        return None if self._reasoning is None else ReasoningSplitter(self._reasoning, self._reasons)

    @property
    def says_text_alone(self) -> bool:
        return super().says_text_alone and self._tools is None and self._reasoning is None

    @property
    def num_reasoning_tokens(self) -> int:
        """Of what was streamed so far."""
        return sum(splitter.num_tokens for splitter in self._splitters.values())

    def opening(self, index: int) -> Json:
        if (splitter := self._splitter()) is not None:
            self._splitters[index] = splitter
        if self._tools is None:
            return _chunk(index, {"role": "assistant", "content": ""})
        self._readers[index] = self._tools.reader()
        return _chunk(index, {"role": "assistant", "content": None})

    def delta(self, index: int, event: Delta) -> tuple[Json, bool]:
        reader, splitter = self._readers.get(index), self._splitters.get(index)
        thought, answer = ("", event) if splitter is None else splitter.split(event)
        said = reader.delta(answer) if reader else {"content": answer.text} if answer.text else {}
        if thought:
            said["reasoning_content"] = thought
        logprobs = self.logprobs_or_none(event.tokens, event.offsets)
        return _chunk(index, said, logprobs), bool(said)

    def closing(self, index: int, event: ChoiceDone) -> Json:
        if (reader := self._readers.get(index)) is None:
            return _chunk(index, {}, finish_reason=event.finish_reason)
        said = reader.last_delta()
        return _chunk(index, said, finish_reason=reader.finish_reason(event.finish_reason))

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


class CompletionFormat(ReplyFormat):
    """`text`, with log-probabilities in columns.

    echoed: the prompts, where they are to come before their replies. prompts: those of which
    `prompt_logprobs` are told. num_echo_top, num_prompt_top: so many of the likeliest tokens beside each.
    num_choices: replies to each prompt.
    """

    id_prefix = "cmpl"
    object_name = "text_completion"
    chunk_object_name = "text_completion"
    echoed: Sequence[PromptReading] = ()
    prompts: Sequence[PromptReading] = ()
    num_echo_top = 0
    num_prompt_top = 0
    num_choices = 1

    def choice(self, index: int, completion: Completion) -> Json:
        choice = self._reply_alone(index, completion)
        if self.echoed:
            echo = self._echo(index)
            choice["text"] = echo["text"] + choice["text"]
            choice["logprobs"] = _joined(echo["logprobs"], choice["logprobs"], len(echo["text"]))
        if self.prompts:
            prompt = self.prompts[index // self.num_choices]
            choice["prompt_logprobs"] = prompt.entries(self.num_prompt_top, self.token_text)
        return choice

    def _echo(self, index: int) -> Json:
        """The prompt as a part of the reply."""
        prompt = self.echoed[index // self.num_choices]
        if not self.logprobs:
            return _choice(index, prompt.text)
        first = self.token_text.text(prompt.token_ids[0])
        tokens = [
            replace(token, top_logprobs=token.top_logprobs[: self.num_echo_top])
            for token in prompt.read_tokens
        ]
        columns = self.logprobs_json(tokens, prompt.offsets[1:])
        nothing: Json = {
            "tokens": [first],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [0],
        }
        return _choice(index, prompt.text, _joined(nothing, columns, 0))

    def _reply_alone(self, index: int, completion: Completion) -> Json:
        # Tokens of a stop string are reported, and their text is cut.
        offsets = [min(offset, len(completion.text)) for offset in completion.offsets]
        logprobs = self.logprobs_or_none(completion.tokens, offsets)
        return _choice(index, completion.text, logprobs, completion.finish_reason)

    def opening(self, index: int) -> Json | None:
        return self._echo(index) if self.echoed else None

    def delta(self, index: int, event: Delta) -> tuple[Json, bool]:
        before = len(self.echoed[index // self.num_choices].text) if self.echoed else 0
        logprobs = self.logprobs_or_none(event.tokens, [before + offset for offset in event.offsets])
        return _choice(index, event.text, logprobs), bool(event.text)

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


def _joined(columns: Json | None, more: Json | None, shift: int) -> Json | None:
    """One after the other. shift: how much further the second ones' tokens begin in the text."""
    if columns is None or more is None:
        return columns or more
    moved = {**more, "text_offset": [offset + shift for offset in more["text_offset"]]}
    return {name: [*columns[name], *moved[name]] for name in columns}


def _choice(index: int, text: str, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
