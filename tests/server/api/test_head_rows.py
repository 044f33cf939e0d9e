from __future__ import annotations

import dataclasses
import logging

import pytest

from trimtab.server.api.config import ApiConfig
from trimtab.server.api.service import HeadRows
from trimtab.server.engine.request import HeadInfo

pytestmark = pytest.mark.anyio


def head(name: str, rows: str | None) -> HeadInfo:
    return HeadInfo(name, has_advantage=True, has_value=False, has_reward=False, trained_on="", rows=rows)


HEADS = [head("chatty", "chat"), head("terse", "text"), head("old", None)]


@pytest.mark.parametrize(("can_chat", "named"), [(True, "terse"), (False, "chatty")])
def test_a_head_of_the_other_form_is_told_at_the_start(caplog, can_chat: bool, named: str):
    HeadRows(HEADS, can_chat=can_chat)
    assert [f"head {named} " in record.message for record in caplog.records] == [True]


def test_each_use_on_the_other_form_is_told_once(caplog):
    rows = HeadRows(HEADS, can_chat=True)
    caplog.clear()
    for _ in range(2):
        rows.meet("text", ["chatty", "terse", "old", "unknown"])
        rows.meet("chat", ["chatty", "terse"])
    assert [record.message.split()[1] for record in caplog.records] == ["chatty"]


async def test_a_text_completed_with_a_head_of_chats_is_told_and_token_ids_are_not(
    make_engine, make_client, caplog
):
    engine = make_engine("kind")
    engine.info = dataclasses.replace(engine.info, heads=(head("kind", "chat"),))
    async with make_client(engine, ApiConfig(default_head="kind", default_strength=1.0)) as client:
        with caplog.at_level(logging.WARNING):
            await client.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": 1})
            assert not caplog.records
            await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1})
    assert "head kind was trained on chats" in caplog.text
