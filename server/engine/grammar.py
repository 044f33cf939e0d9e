"""Grammars: what a reply may go on with, token by token. No torch here.

By llguidance (M. Moskal and others, Microsoft): it reads the tokenizer as bytes and works a mask out as it is
asked for, from an Earley parser over lazily built automata. It is imported where the first grammar is met.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.server.engine.detokenizer import TokenBytes, decoder_names
from trimtab.server.engine.request import GrammarSpec, InvalidRequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

logger = logging.getLogger(__name__)
MAX_KEPT = 32  # compiled grammars
COMPILE_SECONDS = 5.0
FREE_SECONDS, SECONDS_PER_TOKEN = 1.0, 0.02  # of a thread's time that masks of one reply may take in all
MAX_ITEMS = 10_000  # of the parser at one token: a thousand properties that may be left out
MAX_LEXER_STATES = 100_000  # of a reply, some 10 MB
DEAD_END = "no token can come next"
JOINS = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip"})  # decoders
INSTALL = "this server has no llguidance, which grammars need: pip install llguidance"
TOO_COMPLEX = "takes too long or too much memory to compile; simplify it"
_CHECK = Path(__file__).with_name("grammar_check.py")


class Grammar:
    """Where one reply is in its grammar.

    Nothing raises: where the grammar allows nothing, or has become too costly, `mask` is empty and `problem`
    says why.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._matcher, self._vocab_size, self._end_ids = matcher, vocab_size, end_ids
        self._seconds, self._num_masks = 0.0, 0
        self.problem = ""

    def copy(self) -> Grammar:
        """Another reply that goes on from here."""
        other = Grammar(self._matcher.deep_copy(), self._vocab_size, self._end_ids)
        other._seconds, other._num_masks, other.problem = self._seconds, self._num_masks, self.problem
        return other

    @property
    def is_over(self) -> bool:
        """Whether the text is whole and nothing but its end can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def take(self, token_id: int) -> None:
        """Go on by one of the tokens that the mask allows, which is no end."""
        start = time.thread_time()
        self._matcher.consume_token(token_id)
        self._seconds += time.thread_time() - start

    def can_take_any(self, words: np.ndarray) -> bool:
        """Whether one of the first tokens of this mask can be taken: none is where what has to come next has
        no token, as in a small vocabulary without `{`."""
        first = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))[:32]
        return any(self._matcher.validate_tokens([int(token_id)]) for token_id in first)

    def mask(self) -> np.ndarray:
        """i32[⌈V/32⌉], see `apply_token_mask`: what may come next. End tokens are allowed exactly where the
        text may end."""
        start = time.thread_time()
        words = np.frombuffer(self._matcher.compute_bitmask(), np.int32)[: -(-self._vocab_size // 32)].copy()
        if self._vocab_size % 32:  # a tokenizer may have more tokens than the policy
            words[-1] &= (1 << self._vocab_size % 32) - 1
        if self._matcher.is_error():
            self.problem = _told(self._matcher.get_error())
        self._seconds += time.thread_time() - start
        self._num_masks += 1
        if self._seconds > FREE_SECONDS + SECONDS_PER_TOKEN * self._num_masks:
            self.problem = "its masks take too long to work out"
        self._allow_ends(words, not self.problem and self._matcher.is_accepting())
        if self.problem:
            words[:] = 0
        elif not words.any():
            self.problem = DEAD_END
        return words

    def _allow_ends(self, words: np.ndarray, can_end: bool) -> None:
        """A grammar in Lark can name special tokens, and the end's among them, anywhere."""
        bits = words.view(np.uint32)
        for token_id in self._end_ids:
            bit = np.uint32(1 << token_id % 32)
            bits[token_id // 32] = bits[token_id // 32] | bit if can_end else bits[token_id // 32] & ~bit


class Grammars:
    """Compiles grammars for one policy, and keeps the last that were used. Any thread may call it."""

    def __init__(self, tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> None:
        """tokenizer: transformers' PreTrainedTokenizerBase. end_ids: the tokens that end any reply."""
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._end_ids = [token_id for token_id in end_ids if token_id < vocab_size]
        self._kept: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        self._read_tokenizer: LLTokenizer | None = None

    def __contains__(self, spec: GrammarSpec) -> bool:
        return spec in self._kept

    def compile(self, spec: GrammarSpec) -> Grammar:
        """At its beginning; not to be changed but copied. Takes up to some seconds where it is not kept.

        Raises InvalidRequestError by the spec's own field: it is none, allows nothing, or takes too long.
        """
        with self._lock:
            if spec in self._kept:
                self._kept.move_to_end(spec)
                return self._kept[spec]
        grammar = self._compile(spec)
        with self._lock:
            self._kept[spec] = grammar
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _compile(self, spec: GrammarSpec) -> Grammar:
        try:
            import llguidance  # noqa: PLC0415 (optional)
        except ImportError as error:
            raise InvalidRequestError(INSTALL, spec.param) from error
        tokenizer, written = self._tokens(spec), _check(spec)
        limits = llguidance.LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, max_items_in_row=MAX_ITEMS, verbose_errors=False
        )
        matcher = llguidance.LLMatcher(tokenizer, written, log_level=0, limits=limits)
        grammar = Grammar(matcher, self._vocab_size, self._end_ids)
        can_begin = grammar.mask()  # kept within, so that no reply works it out again
        grammar._allow_ends(can_begin, False)
        if grammar.problem:
            raise InvalidRequestError(f"allows no reply: {grammar.problem}", spec.param)
        if not can_begin.any():
            raise InvalidRequestError("allows an empty reply and no other", spec.param)
        if not grammar.can_take_any(can_begin):
            raise InvalidRequestError("allows no reply that this model's vocabulary can write", spec.param)
        return grammar

    def _tokens(self, spec: GrammarSpec) -> LLTokenizer:
        with self._lock:
            if self._read_tokenizer is None:
                try:
                    self._read_tokenizer = self._read()
                except Exception as error:  # of a tokenizer of whatever make
                    logger.warning("a tokenizer cannot be held to grammars", exc_info=error)
                    why = str(error) if isinstance(error, _DecoderError) else "the log says why"
                    what = f"this model's tokenizer cannot be held to a grammar: {why}"
                    raise InvalidRequestError(what, spec.param) from error
            return self._read_tokenizer

    def _read(self) -> LLTokenizer:
        import llguidance  # noqa: PLC0415

        # The last id, behind what a mask's words hold, stands for an end where the policy has none.
        size = max(self._vocab_size, len(self._tokenizer)) + 32
        ends = self._end_ids or [size - 1]
        words = llguidance.TokenizerWrapper(_Words(self._tokenizer, size, ends[0]))
        return llguidance.LLTokenizer(words, n_vocab=size, eos_token=ends)


class _DecoderError(ValueError):
    """Told to who asked for a grammar."""


class _Words:
    """A tokenizer as llguidance's TokenizerWrapper takes it. Called with bytes that a grammar forces, it cuts
    them as the tokenizer does where that keeps them as they are, else into the longest tokens there are."""

    bos_token_id = None

    def __init__(self, tokenizer: Any, size: int, end_id: int) -> None:
        """Raises _DecoderError for a tokenizer whose texts are not its tokens' bytes one after another."""
        names = decoder_names(getattr(tokenizer, "backend_tokenizer", None))
        if not names or not JOINS.issuperset(names):
            named = ", ".join(names) or "none"
            raise _DecoderError(f"its decoder ({named}) changes what stands between tokens")
        self._core = copy.deepcopy(tokenizer.backend_tokenizer)  # no thread changes its settings meanwhile
        written = TokenBytes(tokenizer)
        self.eos_token_id = end_id
        self.tokens = [written[token_id] for token_id in range(len(tokenizer))]
        self.tokens += [b""] * (size - len(tokenizer))
        self.special_token_ids = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
        special = {end_id, *self.special_token_ids}
        self._usual = {i: raw for i, raw in enumerate(self.tokens) if raw and i not in special}
        self._id_of = {raw: token_id for token_id, raw in reversed(self._usual.items())}
        self._longest = max(map(len, self._id_of), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        ids: list[int] = self._core.encode(raw.decode(errors="ignore"), add_special_tokens=False).ids
        is_kept = b"".join(self._usual.get(token_id, b"") for token_id in ids) == raw
        return ids if is_kept else self._longest_first(raw)

    def _longest_first(self, raw: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(raw):
            ends = range(min(len(raw), start + self._longest), start, -1)
            end = next((end for end in ends if raw[start:end] in self._id_of), None)
            if end is None:  # what follows cannot be written
                break
            ids.append(self._id_of[raw[start:end]])
            start = end
        return ids


def _check(spec: GrammarSpec) -> str:
    """The grammar as llguidance's matcher takes it, once a process of its own has compiled it."""
    sent = json.dumps({"kind": spec.kind, "text": spec.text}).encode()
    command = [sys.executable, "-P", str(_CHECK)]
    try:
        run = subprocess.run(command, input=sent, capture_output=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InvalidRequestError(TOO_COMPLEX, spec.param) from error
    if run.returncode:  # by a limit of its own
        logger.warning("the compiler of a grammar ended with %d", run.returncode)
        raise InvalidRequestError(TOO_COMPLEX, spec.param)
    answer = json.loads(run.stdout)
    if "error" in answer:
        raise InvalidRequestError(_told(answer["error"]), answer.get("param", spec.param))
    return str(answer["grammar"])


def _told(error: str) -> str:
    """What a client hears of why a matcher goes no further: of a fault that is not its grammar's, nothing."""
    if error.startswith("NoExtension"):
        return DEAD_END
    if error.startswith("panic"):  # with a traceback of what it has called
        logger.error("a grammar's matcher has failed: %s", error)
        return "the server failed on it, and the log says more"
    return _in_a_line(error)


def _in_a_line(problem: str) -> str:
    """An error of llguidance, without the lines that point into the text."""
    lines = [line.strip() for line in problem.replace("<non-verbose/>", "").splitlines()]
    told = [line for line in lines if line.strip("^ ") and not re.match(r"\d+ \|", line)]
    return " ".join(told)[:300]
