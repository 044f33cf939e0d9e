"""Heads whose rows were of another form than the prompts they are used on: told once each, in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from trimtab.guidance.text.prompt_form import Form, mismatch
from trimtab.server.engine.info import HeadInfo

logger = logging.getLogger(__name__)


class HeadRows:
    """Chats are what a model with a template is for, so that a head which was trained on texts is told of at
    once; one that was trained on chats only when a text is completed with it."""

    def __init__(self, heads: Iterable[HeadInfo], *, can_chat: bool) -> None:
        self._rows = {head.name: head.rows for head in heads}
        self._told: set[tuple[str, Form]] = set()
        self.meet("chat" if can_chat else "text", self._rows)

    def meet(self, form: Form, names: Iterable[str]) -> None:
        """These heads are used on prompts of this form."""
        for name in names:
            problem = mismatch(name, self._rows.get(name), form)
            if problem is not None and (name, form) not in self._told:
                self._told.add((name, form))
                logger.warning("%s", problem)
