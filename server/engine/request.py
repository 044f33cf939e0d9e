"""Requests in, events out: the plain data that crosses the engine's door, and every limit of a request.

Nothing here holds a tensor, a future or a callback, so the door could become a process boundary by
adding a transport and nothing else.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from trimtab.guidance.controllers import CONTROLLERS
from trimtab.guidance.controllers.base import Controller, HeadFacts
from trimtab.guidance.errors import ControllerError, RuleError
from trimtab.guidance.ranges import is_integer_in, is_number_in, shown
from trimtab.guidance.rules import Expert, PoolRule, Rule, Tilt
from trimtab.guidance.rules import read_rule as _read_rule
from trimtab.guidance.rules.expert import POLICY

MAX_STRENGTH = 10.0
MIN_STRENGTH = 1e-6  # what lies below moves no fp32 logit, and counts as 0
MIN_TEMPERATURE = 1e-6  # what lies below draws what 0 draws, and counts as that
MAX_TOP_K = 2**31 - 1
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 2**16
MAX_REPETITION = 100.0  # and its inverse is the least
MAX_STOPS = 64
MAX_STOP_LENGTH = 256
MAX_BAD_WORDS = 64  # of MAX_STOP_LENGTH tokens
MAX_CACHE_SHARE = 0.5  # that one choice of several lanes may come to hold
MAX_GRAMMAR_LENGTH = 2**16  # characters
Scores = tuple[tuple[str, float], ...]
"""A number for each of some heads, by name."""
FinishReason = Literal["stop", "length", "rejected"]
"""rejected: it fell behind the others of its request (see Rejection)."""
FailureReason = Literal["failed", "shutdown", "queue"]
GrammarKind = Literal["json_schema", "regex", "choice", "grammar", "lark_over_schemas"]


class InvalidRequestError(ValueError):
    """A request that can never be served as asked. param: the field at fault, by its name here. problem: what
    is wrong with it, and the fix."""

    def __init__(self, problem: str, param: str | None = None) -> None:
        super().__init__(problem if param is None else f"{param}: {problem}")
        self.problem, self.param = problem, param

    def __reduce__(self) -> tuple[type[InvalidRequestError], tuple[str, str | None]]:
        return type(self), (self.problem, self.param)


class ContextLengthError(InvalidRequestError):
    """The prompt, or prompt and reply together, do not fit the model's context."""


class EngineUnavailableError(RuntimeError):
    """The engine is still loading, stops, or has died; the message says which."""


class QueueFullError(RuntimeError):
    """As many requests, or tokens of requests, are under way as may be."""


def _check(ok: bool, param: str, problem: str) -> None:
    if not ok:
        raise InvalidRequestError(problem, param)


def _check_integer(value: object, low: int, high: int | None, param: str, allowed: str) -> None:
    _check(is_integer_in(value, low, high), param, f"must be {allowed}, got {shown(value)}")


def _check_number(value: object, low: float, high: float, param: str, allowed: str) -> None:
    _check(is_number_in(value, low, high), param, f"must be {allowed}, got {shown(value)}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. On a row: logit_bias, penalties, guidance, temperature, min_p, top_k, top_p.

    Every number is held to a range in which the device's int64 and fp32 hold it.

    temperature: 0 is greedy (argmax of the guided logits, lowest id on a tie), and so is what lies below
    MIN_TEMPERATURE.
    top_k: 0 keeps the whole vocabulary.
    seed: None asks the engine to draw one.
    logprobs: None for none; k reports the drawn token's log-probability and the k most likely ones.
    stop: strings that end the reply and are removed from it; one that is exactly a special token ends it at
    that token. At most MAX_STOPS, of MAX_STOP_LENGTH characters.
    logit_bias: (token, bias) pairs of distinct tokens, at most MAX_LOGIT_BIAS.
    stop_token_ids: tokens that end the reply, at most MAX_STOPS.
    include_stop_str_in_output: what ends the reply is the last of its text, but for special tokens.
    min_tokens: before so many no token is drawn that would end the reply, and no stop string counts.
    bad_words: tokens, in the ways in which a word may be written, that never follow each other.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        _check_integer(self.max_tokens, 1, None, "max_tokens", "at least 1")
        _check_integer(self.top_k, 0, MAX_TOP_K, "top_k", f"0 (off) to {MAX_TOP_K}")
        _check_integer(self.n, 1, MAX_CHOICES, "n", f"1…{MAX_CHOICES}")
        if self.seed is not None:
            _check_integer(self.seed, -(2**63), 2**63 - 1, "seed", "an integer that fits in 64 bits")
        if self.logprobs is not None:
            _check_integer(self.logprobs, 0, MAX_LOGPROBS, "logprobs", f"0…{MAX_LOGPROBS}")
        _check_number(self.temperature, 0, 100, "temperature", "0…100")
        _check_number(self.top_p, 0, 1, "top_p", "above 0 and at most 1")
        _check(self.top_p > 0, "top_p", f"must be above 0 and at most 1, got {shown(self.top_p)}")
        _check_number(self.min_p, 0, 1, "min_p", "0…1")
        for name in ("presence_penalty", "frequency_penalty"):
            _check_number(getattr(self, name), -2, 2, name, "-2…2")
        low, high = 1 / MAX_REPETITION, MAX_REPETITION
        _check_number(
            self.repetition_penalty, low, high, "repetition_penalty", f"above 0, {low:g}…{high:g} (1 is off)"
        )
        self._check_stop()
        self._check_logit_bias()
        most = self.max_tokens
        _check_integer(self.min_tokens, 0, most, "min_tokens", f"0 to what max_tokens is, {shown(most)}")
        self._check_bad_words()
        if self.temperature < MIN_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)

    def _check_stop(self) -> None:
        _check(all(self.stop), "stop", "must not contain an empty string")
        _check(len(self.stop) <= MAX_STOPS, "stop", f"has {len(self.stop)} strings, of at most {MAX_STOPS}")
        longest = max(map(len, self.stop), default=0)
        what = f"has a string of {longest} characters, of at most {MAX_STOP_LENGTH}"
        _check(longest <= MAX_STOP_LENGTH, "stop", what)

        num_ids = len(self.stop_token_ids)
        _check(num_ids <= MAX_STOPS, "stop_token_ids", f"has {num_ids} tokens, of at most {MAX_STOPS}")

    def _check_bad_words(self) -> None:
        num_words, longest = len(self.bad_words), max(map(len, self.bad_words), default=0)
        most = 2 * MAX_BAD_WORDS  # each in two ways
        _check(num_words <= most, "bad_words", f"has too many words, of at most {MAX_BAD_WORDS}")
        _check(all(self.bad_words), "bad_words", "must not contain a word without tokens")
        what = f"has a word of {longest} tokens, of at most {MAX_STOP_LENGTH}"
        _check(longest <= MAX_STOP_LENGTH, "bad_words", what)

    def _check_logit_bias(self) -> None:
        given, param = self.logit_bias, "logit_bias"
        _check(len(given) <= MAX_LOGIT_BIAS, param, f"has {len(given)} tokens, of at most {MAX_LOGIT_BIAS}")
        for token, bias in given:
            is_id = type(token) is int and token >= 0
            if not (is_id and type(bias) in (int, float) and -100 <= bias <= 100):
                what = f"token {shown(token)} must be an id with a bias of -100…100, got {shown(bias)}"
                raise InvalidRequestError(what, param)
        _check(len({token for token, _ in given}) == len(given), param, "names a token twice")

    @property
    def forbids(self) -> bool:
        """Whether tokens may be forbidden at some draws."""
        return bool(self.min_tokens or self.bad_words)

    @property
    def has_penalties(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def truncates(self) -> bool:
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


ROW_INTS = ("top_k",)
ROW_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Of SamplingParams, what a step reads row by row on the device: StepState keeps a column for each."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """Which heads steer, how hard, and by which rule. Strength 0 measures the named heads and steers nothing,
    whatever a rule that reads values would do; a strength or weight below MIN_STRENGTH counts as 0.

    controllers: what lessens the strength from token to token, at most one of a kind.
    """

    strength: float = 0.0
    heads: tuple[tuple[str, float], ...] = ()
    trace: bool = False
    controllers: tuple[Controller, ...] = ()
    rule: Rule = field(default_factory=Tilt)

    def __post_init__(self) -> None:
        allowed = f"a number in -{MAX_STRENGTH:g}…{MAX_STRENGTH:g}"
        _check_number(self.strength, -MAX_STRENGTH, MAX_STRENGTH, "guidance.strength", allowed)
        for name, weight in self.heads:
            _check_number(weight, -MAX_STRENGTH, MAX_STRENGTH, f"guidance.heads.{name}", allowed)
        names = [name for name, _ in self.heads]
        _check(len(set(names)) == len(names), "guidance.heads", "names a head twice")
        kinds = set(map(type, self.controllers))
        _check(len(kinds) == len(self.controllers), "guidance", "holds two controllers of one kind")
        object.__setattr__(self, "strength", _settled(self.strength))
        object.__setattr__(self, "heads", tuple((name, _settled(weight)) for name, weight in self.heads))
        if self.rule.reads_values and not self.strength:
            object.__setattr__(self, "rule", Tilt())

    @property
    def is_guided(self) -> bool:
        """Whether heads or a rule may change what is drawn."""
        steers = self.strength and any(weight for _, weight in self.heads)
        return bool(steers or self.rule.adds_scores)


def read_rule(kind: str, options: Mapping[str, Any]) -> Rule:
    """A rule as a request names it. Raises InvalidRequestError."""
    try:
        return _read_rule(kind, options)
    except RuleError as error:
        param = "guidance.rule" if error.key == "kind" else f"guidance.rule.{error.key}"
        raise InvalidRequestError(error.problem, param) from error


def _settled(number: float) -> float:
    return number if abs(number) >= MIN_STRENGTH else 0.0


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What a reply must be a text of, as the request wrote it.

    kind: how to read `text`: as a JSON schema, a regular expression for the whole reply, a JSON list of
    texts, a grammar in EBNF (as llama.cpp writes it) or Lark, or `{"lark": text, "schemas": [[name, param,
    schema], …]}`, a grammar in Lark that has JSON schemas as `@name`. param: the field it came from, for
    errors; a schema's own for what is wrong with that. salt: only who has the same finds it compiled.
    """

    kind: GrammarKind
    text: str
    param: str = field(default="grammar", compare=False)
    salt: str = ""

    def __post_init__(self) -> None:
        _check(bool(self.text), self.param, "must not be empty")
        what = f"has {len(self.text)} characters, of at most {MAX_GRAMMAR_LENGTH}; shorten it"
        _check(len(self.text) <= MAX_GRAMMAR_LENGTH, self.param, what)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Speculative rejection (Sun et al., arXiv 2410.20290): choices of a request whose forecast falls behind
    end early. After every `every` tokens those that still run are ranked by Σ wᵢ Vᵢ over the heads, in
    standard units; the better `share` of them goes on, and so many that with those that have ended there are
    `keep`.

    weights: heads with a value part.
    """

    weights: tuple[tuple[str, float], ...]
    every: int
    share: float
    keep: int

    def __post_init__(self) -> None:
        field = "speculative_rejection"
        _check_integer(self.every, 1, 2**31 - 1, f"{field}.every", "at least 1")
        _check_number(self.share, 0, 1, f"{field}.share", "above 0 and below 1")
        _check(0 < self.share < 1, f"{field}.share", f"must be above 0 and below 1, got {shown(self.share)}")


@dataclass(frozen=True, slots=True)
class Request:
    """end_token_id: put behind a reply that ended without one before it is judged; by default the policy's
    own, of chats where it has a chat template. grammar: what the reply must be a text of, if anything.
    rejection: ends choices that fall behind the others.
    given: the reply, of max_tokens tokens, where it is given: nothing is drawn, and its tokens are told of as
    if they had been. logit_bias and penalties, which are for draws, are no part of that.
    tenant: who asks; the engine is shared fairly between tenants, whoever they are. salt: only requests of
    the same share keys and values of a prefix, so that nobody can tell by the time what others have asked.
    max_wait: seconds that it may wait to begin.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    guidance: Guidance = field(default_factory=Guidance)
    end_token_id: int | None = None
    grammar: GrammarSpec | None = None
    rejection: Rejection | None = None
    given: tuple[int, ...] = ()
    tenant: str = ""
    salt: str = ""
    max_wait: float | None = None

    @property
    def num_tokens(self) -> int:
        """Of its prompt and of all its replies, at most."""
        return len(self.prompt_token_ids) + self.sampling.n * self.sampling.max_tokens


def reading_of(request_id: str, prompt: Sequence[int], given: Sequence[int], **other: Any) -> Request:
    """A request whose reply is given. other: fields of Request, and logprobs of its SamplingParams."""
    logprobs = other.pop("logprobs", None)
    sampling = SamplingParams(max_tokens=len(given), temperature=0, ignore_eos=True, logprobs=logprobs)
    return Request(request_id, tuple(prompt), sampling, given=tuple(given), **other)


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What was measured and done at one token, all before temperature and truncation.

    value: per head, in standard units of the policy's own replies, before this token.
    kl: nats of the tilt from the base. entropy: nats of the base.
    part: reasoning or answer, of a model that thinks between tags.
    base_top: the three tokens the base preferred, with log-probabilities.
    """

    value: Scores
    kl: float
    strength: float
    entropy: float
    base_logprob: float
    flip: bool
    base_top: tuple[tuple[int, float], ...]
    part: str | None = None


@dataclass(slots=True)  # not frozen: made for every token of every row, in a third of the time
class TokenRecord:
    """One drawn token. logprob and top_logprobs are of the tilt, before temperature and truncation."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()
    trace: TokenTrace | None = None


@dataclass(frozen=True, slots=True)
class StepValue:
    """What a step of the reasoning came to: per head, V after `num_tokens` tokens of the reply."""

    num_tokens: int
    value: Scores


@dataclass(frozen=True, slots=True)
class GuidanceSummary:
    """Of one choice. kl: nats over the reply. value, reward: per named head, in standard units; a head
    without the part has no entry. flips: tokens at which the tilt's argmax differed from the base's. steps:
    of the reasoning, where a trace was asked for. rule: what the rule reports of itself, by name."""

    kl: float
    mean_strength: float
    value: Scores
    reward: Scores
    flips: int
    steps: tuple[StepValue, ...] = ()
    rule: Scores = ()


@dataclass(slots=True)  # not frozen: made for every token of every row, in a third of the time
class Delta:
    """New text of one choice (possibly empty: half a character, or text that may become a stop string)
    with the tokens drawn since its last delta.

    offsets: of each token, where in the choice's text it begins, in characters.
    """

    request_id: str
    index: int
    text: str
    tokens: tuple[TokenRecord, ...]
    offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceDone:
    """One choice has ended; the request goes on until its last choice has. Not a terminal event.

    stop_reason: what ended the reply, if that is a string or a token which the request names.
    num_run: tokens that the model was run on for the reply, without the prompt's but its last: in companion
    lanes, probes and forks too, and what had to be computed again. Of particles that are all returned the
    first one has what all took.
    """

    request_id: str
    index: int
    finish_reason: FinishReason
    summary: GuidanceSummary
    num_tokens: int
    num_run: int = 0
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds of a request in the engine: until it was taken up, from then to its first token, and from there
    to its last."""

    queue: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Finished:
    """Terminal: every choice has ended. num_computed_tokens: those that the model was run on for it, also in
    companion lanes, probes and dropped forks, and what had to be computed again. times: as they were
    measured."""

    request_id: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_computed_tokens: int = 0
    times: RequestTimes | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Aborted:
    """Terminal: `abort` was called."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal: the engine could not go on with this request. The message may be shown to whoever sent it:
    what went wrong inside is in the log alone.

    reason: "shutdown" when it was the server that was told to stop, "queue" when it waited too long to begin.
    """

    request_id: str
    message: str
    reason: FailureReason = "failed"


@dataclass(slots=True)
class Completion:
    """One choice's reply, gathered from its events by whoever waits for the whole of it.

    offsets: see Delta. num_run, finish_reason, stop_reason, summary: there once the choice has ended.
    """

    request: Request
    index: int
    text: str = ""
    tokens: list[TokenRecord] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    num_run: int = 0
    stop_reason: str | int | None = None
    finish_reason: FinishReason = field(init=False)
    summary: GuidanceSummary = field(init=False)

    def take(self, event: Delta | ChoiceDone) -> None:
        if isinstance(event, Delta):
            self.text += event.text
            self.tokens.extend(event.tokens)
            self.offsets.extend(event.offsets)
        else:
            self.finish_reason, self.summary = event.finish_reason, event.summary
            self.num_run, self.stop_reason = event.num_run, event.stop_reason

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"


Event = Delta | ChoiceDone | Finished | Aborted | Failed
TERMINAL = (Finished, Aborted, Failed)


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """rows: as what its training read prompts, chats or texts; None where that was not recorded.
    value_per_advantage: see AdvantagePart; a head can hold a target where it is above 0."""

    name: str
    has_advantage: bool
    has_value: bool
    has_reward: bool
    trained_on: str
    rows: str | None = None
    value_per_advantage: float | None = None


@dataclass(frozen=True, slots=True)
class ExpertInfo:
    """A further model. max_model_len: tokens of prompt and reply together."""

    name: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """max_model_len: tokens of prompt and reply together. created: Unix seconds. can_reason: the model thinks
    between tags that are known. max_num_seqs, num_blocks, block_size: lanes that can run at the same time,
    and the cache that they share."""

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    heads: tuple[HeadInfo, ...]
    created: int
    can_reason: bool = False
    max_num_seqs: int = 64
    num_blocks: int = 2**20
    block_size: int = 16
    experts: tuple[ExpertInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is at, and has done so far. cache_usage: share of the blocks that lanes hold.
    prefix_queries, prefix_hits: tokens of prompts that were looked up, and found. num_guided: of the running
    choices, those that are steered."""

    num_running: int = 0
    num_waiting: int = 0
    num_guided: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0


def check_request(request: Request, info: EngineInfo) -> None:
    """Raise InvalidRequestError for what this model with these heads can never serve.

    What no model could serve, the request's own dataclasses have refused.
    """
    _check_lengths(request, info.max_model_len)
    last = info.vocab_size - 1
    check_ids(request.prompt_token_ids + request.given, info, "prompt")
    highest = max((token for token, _ in request.sampling.logit_bias), default=0)
    _check(highest <= last, "logit_bias", f"token ids must be 0…{last}, got {highest}")
    _check_heads(request.guidance, info.heads)
    if request.given:
        _check_given(request)
    check_ids(request.sampling.stop_token_ids, info, "stop_token_ids")
    for name in ("min_tokens", "bad_words") if request.grammar is not None else ():
        what = "is not for replies within a grammar, which alone says what may come; leave it out"
        _check(not getattr(request.sampling, name), name, what)
    goes_on = request.grammar is not None and request.sampling.ignore_eos
    _check(not goes_on, "ignore_eos", "cannot go on where a grammar ends; leave it out")
    _check_rule(request, info)
    measured = {head.name for head in info.heads if head.has_value} & {n for n, _ in request.guidance.heads}
    for name, _ in request.rejection.weights if request.rejection else ():
        _check(name in measured, "speculative_rejection", f"no value of head '{name}' is measured")
    _check_controllers(request.guidance, info)


def check_ids(tokens: Sequence[int], info: EngineInfo, param: str) -> None:
    """Raise InvalidRequestError for what are no ids of this vocabulary. param: the field they stand in."""
    _check(
        not tokens or _are_ids(tokens, info.vocab_size - 1),
        param,
        f"token ids must be 0…{info.vocab_size - 1}",
    )


def _check_lengths(request: Request, limit: int) -> None:
    num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    _check(num_prompt > 0, "prompt", "has no tokens; give at least one")
    most = f"this model's maximum context length is {limit} tokens"  # words that clients look for
    if request.given and num_prompt + max_tokens > limit:
        raise ContextLengthError(f"{most}, the text has {num_prompt + max_tokens}; shorten it", "prompt")
    if num_prompt >= limit:
        raise ContextLengthError(
            f"{most} for prompt and reply, the prompt has {num_prompt} tokens; shorten it", "prompt"
        )
    if num_prompt + max_tokens > limit:
        raise ContextLengthError(
            f"{most}; {shown(max_tokens)} after a prompt of {num_prompt} are more; ask for at most "
            f"{limit - num_prompt}",
            "max_tokens",
        )


def _check_given(request: Request) -> None:
    """What steers a given reply is the same at each of its tokens: a strength, and heads."""
    assert len(request.given) == request.sampling.max_tokens
    assert request.sampling.n == 1
    assert request.grammar is None
    rule, what = request.guidance.rule, "is for draws; tokens that are given are told of without it"
    _check(isinstance(rule, Tilt), "guidance.rule", what)
    for controller in request.guidance.controllers:
        name = next(name for name, kind in CONTROLLERS.items() if isinstance(controller, kind))
        raise InvalidRequestError(what, f"guidance.{name}")


def _are_ids(tokens: Sequence[int], last: int) -> bool:
    try:
        ids = array("q", tokens)
    except (TypeError, OverflowError):  # no integers, or beyond 64 bits
        return False
    return min(ids) >= 0 and max(ids) <= last


def _check_heads(guidance: Guidance, heads: Sequence[HeadInfo]) -> None:
    loaded = {head.name: head for head in heads}
    names = ", ".join(loaded) or "none"
    for name, weight in guidance.heads:
        param, steers = f"guidance.heads.{name}", guidance.strength * weight != 0
        _check(name in loaded, param, f"no such head; loaded heads: {names}")
        if guidance.rule.reads_values:
            what = f"has no value, by which rule {guidance.rule.kind} steers; use weight 0"
            _check(loaded[name].has_value or not steers, param, what)
            steers = steers and guidance.rule.tilts
        can_steer = loaded[name].has_advantage or not steers
        _check(can_steer, param, "has no advantage and cannot steer; use weight 0")
    if guidance.strength and not guidance.heads:
        _check(bool(loaded), "guidance.strength", "no head is loaded; start the server with --heads FOLDER")
        what = f"name at least one head, or set strength 0; loaded heads: {names}"
        raise InvalidRequestError(what, "guidance.heads")


def _check_rule(request: Request, info: EngineInfo) -> None:
    """A choice of a rule with several lanes, or probes, holds no more than its share of what all requests
    share, or it would run alone, or never."""
    rule = request.guidance.rule
    if rule.reads_values and not any(weight for _, weight in request.guidance.heads):
        what = f"rule {rule.kind} steers by a head's value; give one a weight"
        raise InvalidRequestError(what, "guidance.heads")
    if isinstance(rule, Expert):
        _check_experts(request, rule, info.experts)
    if rule.num_lanes == 1 and not rule.num_probes:
        return
    if isinstance(rule, PoolRule):
        _check_pool(request, rule)
    param = f"guidance.rule.{rule.wide}"
    other = rule.companion
    if other:
        last = info.vocab_size - 1
        _check(_are_ids(other, last), param, f"token ids must be 0…{last}")
        room = info.max_model_len - request.sampling.max_tokens
        what = f"has {len(other)} tokens, of at most {room} that max_tokens leaves of the context"
        _check(len(other) <= room, param, what)
    what = (
        f"takes {rule.num_lanes} sequences at once, of {info.max_num_seqs}; raise the server's --max-num-seqs"
    )
    _check(rule.num_lanes <= info.max_num_seqs, param, what)
    what = f"is {rule.num_probes}, of a vocabulary of {info.vocab_size}"
    _check(rule.num_probes <= info.vocab_size, param, what)
    needed, most = _blocks_of(request, info.block_size), int(MAX_CACHE_SHARE * info.num_blocks)
    what = (
        f"takes {needed} blocks of the key/value cache with prompt and max_tokens, of at most {most}; ask "
        "for less, or raise the server's --kv-cache-gib"
    )
    _check(needed <= most, param, what)


def _check_experts(request: Request, rule: Expert, experts: Sequence[ExpertInfo]) -> None:
    loaded = {expert.name: expert for expert in experts}
    names = ", ".join(loaded) or "none; start the server with --expert NAME=FOLDER"
    num_tokens = len(request.prompt_token_ids) + request.sampling.max_tokens
    for option in ("expert", "anti_expert"):
        name, param = getattr(rule, option), f"guidance.rule.{option}"
        if name in (None, POLICY):
            continue
        _check(name in loaded, param, f"no such expert; loaded experts: {names}")
        limit = loaded[name].max_model_len
        what = f"'{name}' has a context of {limit} tokens, and prompt and max_tokens have {num_tokens}"
        _check(num_tokens <= limit, param, f"{what}; ask for fewer")


def _blocks_of(request: Request, block_size: int) -> int:
    """Cache blocks that one choice of a request can come to hold."""
    rule, max_tokens = request.guidance.rule, request.sampling.max_tokens
    prompts = [len(prompt) for prompt in (request.prompt_token_ids, rule.companion) if prompt]
    own = sum(-(-(num + max_tokens) // block_size) for num in prompts)
    forks = (rule.num_lanes - len(prompts)) * (max_tokens // block_size + 2)
    return own + forks + rule.num_probes


def _check_pool(request: Request, rule: PoolRule) -> None:
    sampling = request.sampling
    what = f"must be {' or '.join(map(str, rule.nums_of_replies))} with rule {rule.kind}, and best_of alike"
    _check(sampling.n in rule.nums_of_replies, "n", what)
    what = f"is not for rule {rule.kind}, which drops sequences by itself; leave it out"
    _check(request.rejection is None, "speculative_rejection", what)
    what = f"must be above 0 with rule {rule.kind}, whose sequences are one and the same at 0"
    _check(sampling.temperature > 0, "temperature", what)
    is_exact = sampling.temperature == 1 and not sampling.truncates
    what = "tilt needs temperature 1, top_p 1, top_k 0 and min_p 0 with rule smc; use policy"
    _check(rule.kind != "smc" or not rule.tilts or is_exact, "guidance.rule.proposal", what)


def _check_controllers(guidance: Guidance, info: EngineInfo) -> None:
    rule = guidance.rule
    what = (
        "draws by the policy, without a strength that controllers could lessen; use tilt, or leave them out"
    )
    is_tilted = rule.tilts or not rule.is_pool
    _check(is_tilted or not guidance.controllers, "guidance.rule.proposal", what)
    heads = ((head.name, head.has_value, head.value_per_advantage) for head in info.heads)
    facts = head_facts(guidance, heads)
    with naming_controllers():
        for controller in guidance.controllers:
            controller.check_rule(rule.kind, rule.adds_scores)
            controller.check(facts)
            controller.check_model(info.can_reason)


def head_facts(guidance: Guidance, heads: Iterable[tuple[str, bool, float | None]]) -> dict[str, HeadFacts]:
    """What a request's controllers may know. heads: of all that are loaded, in order, the name, whether it
    has a value, and its value_per_advantage."""
    weights, adds_values = dict(guidance.heads), guidance.rule.adds_values
    return {
        name: HeadFacts(i, weights.get(name, 0.0), has_value, 1.0 if adds_values and has_value else slope)
        for i, (name, has_value, slope) in enumerate(heads)
    }


@contextmanager
def naming_controllers() -> Iterator[None]:
    """Within, what a controller refuses is a field of the request's guidance."""
    try:
        yield
    except ControllerError as error:
        raise InvalidRequestError(error.problem, f"guidance.{error.key}") from error
