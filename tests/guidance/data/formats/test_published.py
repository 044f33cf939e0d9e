"""Rows as public data sets publish them, with columns that nobody reads, and what they load as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.guidance.data.formats.registry import FORMATS
from trimtab.guidance.data.load import load_rows
from trimtab.guidance.data.rows import Preference, Ranking, Rollout, Unpaired
from trimtab.guidance.errors import DataError
from trimtab.guidance.text.message import Message

HELLO = (Message("user", "Hello?"),)
TALK = "\n\nHuman: Hello?\n\nAssistant:"
SYSTEM = Message("system", "Be brief.")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def turn(speaker: str, text: str) -> dict[str, Any]:
    return {"from": speaker, "value": text}


HI, NO = [user("Hello?"), said("Hi!")], [user("Hello?"), said("No.")]
PAIR = Preference(HELLO, "Hi!", "No.")
PLAIN = Preference("Hello?", "Hi!", "No.")

PREFERENCES: dict[str, tuple[dict[str, Any], Preference]] = {
    "llama_factory dpo": (
        {
            "conversations": [turn("human", "Hello?")],
            "chosen": turn("gpt", "Hi!"),
            "rejected": turn("gpt", "No."),
        },
        PAIR,
    ),
    "sharegpt, replies as lists, a system": (
        {
            "conversations": [turn("user", "Hello?")],
            "chosen": [turn("chatgpt", "Hi!")],
            "rejected": [turn("assistant", "No.")],
            "system": "Be brief.",
        },
        Preference((SYSTEM, *HELLO), "Hi!", "No."),
    ),
    "openai messages": (
        {"messages": [user("Hello?")], "chosen": said("Hi!"), "rejected": said("No.")},
        PAIR,
    ),
    "messages, replies as strings": (
        {"messages": [user("Hello?")], "chosen": "Hi!", "rejected": "No.", "id": 3},
        PAIR,
    ),
    "hh-rlhf": ({"chosen": f"{TALK} Hi!", "rejected": f"{TALK} No."}, PAIR),
    "hh-rlhf, two turns": (
        {"chosen": f"{TALK} Hey.{TALK} Hi!", "rejected": f"{TALK} Hey.{TALK} No."},
        Preference((*HELLO, Message("assistant", "Hey."), *HELLO), "Hi!", "No."),
    ),
    "hh-rlhf, replies that begin alike": (
        {"chosen": f"{TALK} I think so.", "rejected": f"{TALK} I thank you."},
        Preference(HELLO, "I think so.", "I thank you."),
    ),
    "hh-rlhf, a reply that names its speaker twice": (
        {"chosen": f"{TALK} Hi!\n\nAssistant: Well?", "rejected": f"{TALK} No."},
        Preference(HELLO, "Hi!\n\nWell?", "No."),
    ),
    "rm-static": (
        {"prompt": TALK, "response": " Hi!", "chosen": " Hi!", "rejected": " No."},
        PAIR,
    ),
    "ultrafeedback_binarized": (
        {
            "prompt": "Hello?",
            "prompt_id": "ab",
            "chosen": HI,
            "rejected": NO,
            "messages": HI,
            "score_chosen": 8.5,
            "score_rejected": 8.0,
        },
        Preference(HELLO, "Hi!", "No.", 0.5),
    ),
    "dpo-mix": (
        {
            "dataset": "x",
            "chosen": HI,
            "rejected": NO,
            "chosen_rating": 5.0,
            "rejected_rating": 2.0,
        },
        Preference(HELLO, "Hi!", "No.", 3.0),
    ),
    "skywork": ({"chosen": HI, "rejected": NO, "source": "web"}, PAIR),
    "capybara": (
        {
            "source": "x",
            "conversation": [{"input": "Hello?", "output": "Hi!"}],
            "chosen": HI,
            "rejected": NO,
            "rating_chosen": 5,
            "rating_rejected": 4,
        },
        Preference(HELLO, "Hi!", "No.", 1.0),
    ),
    "trl, turns as sharegpt": (
        {
            "prompt": [turn("human", "Hello?")],
            "chosen": [turn("gpt", "Hi!")],
            "rejected": [turn("gpt", "No.")],
        },
        PAIR,
    ),
    "prompt and replies as one message": (
        {"prompt": [user("Hello?")], "chosen": said("Hi!"), "rejected": said("No.")},
        PAIR,
    ),
    "openbmb ultrafeedback": (
        {
            "source": "x",
            "instruction": "Hello?",
            "models": ["a", "b", "c"],
            "completions": [
                {"response": "So.", "overall_score": 6.0, "model": "a"},
                {"response": "No.", "overall_score": 4.0, "model": "b"},
                {"response": "Hi!", "overall_score": 8.5, "model": "c"},
            ],
            "correct_answers": ["None"],
        },
        Preference("Hello?", "Hi!", "No.", 4.5),
    ),
    "nectar": (
        {
            "prompt": f"{TALK} ",
            "answers": [
                {"answer": "Hi!", "model": "a", "rank": 1.0},
                {"answer": "So.", "model": "b", "rank": 2.0},
                {"answer": "No.", "model": "c", "rank": 3.0},
            ],
            "turns": 1,
            "num_responses": 3,
            "source": ["x"],
            "good_natured": True,
        },
        PAIR,
    ),
    "webgpt": (
        {
            "question": {"dataset": "eli5", "id": "3", "full_text": "Hello?"},
            "quotes_0": {"title": ["x"], "extract": ["y"]},
            "answer_0": "No.",
            "tokens_0": {"prefix": [1], "completion": [2]},
            "score_0": -0.25,
            "quotes_1": {"title": ["x"], "extract": ["y"]},
            "answer_1": "Hi!",
            "tokens_1": {"prefix": [1], "completion": [2]},
            "score_1": 0.25,
        },
        Preference("Hello?", "Hi!", "No.", 0.5),
    ),
    "graded, second much better": (
        {"question": "Hello?", "answer_a": "No.", "answer_b": "Hi!", "grade": "B much better"},
        Preference("Hello?", "Hi!", "No.", 3.0),
    ),
    "graded, first slightly better": (
        {"prompt": "Hello?", "response_1": "Hi!", "response_2": "No.", "preference": "1 is slightly better"},
        Preference("Hello?", "Hi!", "No.", 1.0),
    ),
    "pku-saferlhf": (
        {
            "prompt": "Hello?",
            "response_0": "No.",
            "response_1": "Hi!",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 1,
            "safer_response_id": 0,
        },
        PLAIN,
    ),
    "helpsteer2 preference": (
        {
            "split": "train",
            "prompt": "Hello?",
            "response_1": "Hi!",
            "response_2": "No.",
            "preference_strength": -2,
            "preference_statement": "Response 1 is better",
        },
        Preference("Hello?", "Hi!", "No.", 2.0),
    ),
    "helpsteer3": (
        {
            "domain": "general",
            "language": "en",
            "context": [user("Hello?")],
            "response1": "No.",
            "response2": "Hi!",
            "overall_preference": 3,
            "individual_preference": [{"score": 3, "reasoning": "x"}],
        },
        Preference(HELLO, "Hi!", "No.", 3.0),
    ),
    "shp": (
        {
            "post_id": "x",
            "history": "Hello?",
            "human_ref_A": "No.",
            "human_ref_B": "Hi!",
            "labels": 0,
            "score_A": 4,
            "score_B": 700,
        },
        PLAIN,
    ),
    "stack-exchange-paired": (
        {
            "qid": 4,
            "question": "Hello?",
            "date": "x",
            "metadata": ["y"],
            "response_j": "Hi!",
            "response_k": "No.",
        },
        PLAIN,
    ),
    "orca_dpo_pairs": (
        {"system": "Be brief.", "question": "Hello?", "chosen": "Hi!", "rejected": "No."},
        Preference((SYSTEM, *HELLO), "Hi!", "No."),
    ),
    "orca_dpo_pairs without a system": (
        {"system": "", "question": "Hello?", "chosen": "Hi!", "rejected": "No."},
        PLAIN,
    ),
    "distilabel-intel-orca": (
        {
            "system": "Be brief.",
            "input": "Hello?",
            "chosen": "Hi!",
            "rejected": "No.",
            "generations": ["Hi!", "No."],
            "order": ["a", "b"],
            "rating": [9.0, 7.0],
            "status": "unchanged",
        },
        Preference((SYSTEM, *HELLO), "Hi!", "No."),
    ),
    "truthy-dpo": (
        {
            "id": "x",
            "source": "y",
            "system": "Be brief.",
            "prompt": "Hello?",
            "chosen": "Hi!",
            "rejected": "No.",
        },
        Preference((SYSTEM, *HELLO), "Hi!", "No."),
    ),
    "alpaca dpo": (
        {"instruction": "Hello?", "input": "", "chosen": "Hi!", "rejected": "No."},
        PLAIN,
    ),
    "comparison_gpt4": ({"instruction": "Hello?", "input": "", "output": ["Hi!", "No."]}, PLAIN),
    "chatbot arena": (
        {
            "question_id": "x",
            "model_a": "m",
            "model_b": "n",
            "winner": "model_b",
            "judge": "j",
            "conversation_a": NO,
            "conversation_b": HI,
            "turn": 1,
        },
        PAIR,
    ),
    "summarize_from_feedback": (
        {
            "info": {"id": "x", "post": "Hello?", "title": "t"},
            "summaries": [{"text": "No.", "policy": "a"}, {"text": "Hi!", "policy": "b"}],
            "choice": 1,
            "worker": "w",
        },
        PLAIN,
    ),
    "scores beside a list of strings": (
        {"prompt": "Hello?", "completions": ["No.", "Hi!"], "scores": [1.0, 2.5]},
        Preference("Hello?", "Hi!", "No.", 1.5),
    ),
    "metadata beside our own columns": (
        {"id": 3, "source": "x", "prompt": "Hello?", "chosen": "Hi!", "rejected": "No."},
        PLAIN,
    ),
}


def load(tmp_path: Path, kind: str, *rows: dict[str, Any]) -> list[Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_rows(kind, path).rows)


@pytest.mark.parametrize("name", PREFERENCES)
def test_published_preferences_load_as_they_are(tmp_path: Path, name: str):
    row, want = PREFERENCES[name]
    assert load(tmp_path, "preferences", row) == [want]


UNPAIRED: dict[str, tuple[dict[str, Any], list[Unpaired]]] = {
    "llama_factory kto": ({"messages": HI, "label": False}, [Unpaired(HELLO, "Hi!", False)]),
    "sharegpt kto": (
        {"conversations": [turn("human", "Hello?"), turn("gpt", "Hi!")], "kto_tag": True},
        [Unpaired(HELLO, "Hi!", True)],
    ),
    "beavertails": (
        {"prompt": "Hello?", "response": "Hi!", "category": {"x": False}, "is_safe": True},
        [Unpaired("Hello?", "Hi!", True)],
    ),
    "alpaca kto": (
        {"instruction": "Hello?", "input": "Ann", "output": "Hi!", "kto_tag": True},
        [Unpaired("Hello?\n\nAnn", "Hi!", True)],
    ),
    "gsm8k solutions": (
        {
            "question": "2 + 2?",
            "ground_truth": "4",
            "6b_finetuning": {"is_correct": False, "solution": "A: 5"},
            "175b_verification": {"is_correct": True, "solution": "A: 4"},
        },
        [Unpaired("2 + 2?", "A: 5", False), Unpaired("2 + 2?", "A: 4", True)],
    ),
}


@pytest.mark.parametrize("name", UNPAIRED)
def test_published_thumbs_load_as_they_are(tmp_path: Path, name: str):
    row, want = UNPAIRED[name]
    assert load(tmp_path, "unpaired", row) == want


PROMPTS: dict[str, tuple[dict[str, Any], Any]] = {
    "alpaca": ({"instruction": "Hello?", "input": "", "output": "Hi!"}, "Hello?"),
    "alpaca with an input": ({"instruction": "Greet.", "input": "Ann", "output": "Hi!"}, "Greet.\n\nAnn"),
    "alpaca with a history": (
        {"instruction": "Hello?", "input": "", "output": "Hi!", "history": [["Hello?", "Hey."]]},
        (*HELLO, Message("assistant", "Hey."), *HELLO),
    ),
    "dolly": (
        {"instruction": "Greet.", "context": "Ann", "response": "Hi!", "category": "x"},
        "Greet.\n\nAnn",
    ),
    "gsm8k": ({"question": "Hello?", "answer": "Hi!\n#### 3"}, "Hello?"),
    "openorca": (
        {"id": "x", "system_prompt": "Be brief.", "question": "Hello?", "response": "Hi!"},
        (SYSTEM, *HELLO),
    ),
    "no_robots": ({"prompt": "Hello?", "prompt_id": "x", "messages": HI, "category": "y"}, HELLO),
    "sharegpt": ({"id": "x", "conversations": [turn("human", "Hello?"), turn("gpt", "Hi!")]}, HELLO),
    "wildchat": ({"conversation": HI, "model": "x", "turn": 1, "language": "English"}, HELLO),
    "helpsteer2": ({"prompt": "Hello?", "response": "Hi!", "helpfulness": 3, "verbosity": 2}, "Hello?"),
    "guanaco": ({"text": "### Human: Hello?### Assistant: Hi!"}, HELLO),
    "hh-rlhf": ({"chosen": f"{TALK} Hi!", "rejected": f"{TALK} No."}, HELLO),
    "red-team-attempts": ({"transcript": f"{TALK} Hi!", "rating": 3.0}, HELLO),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_published_prompts_load_as_they_are(tmp_path: Path, name: str):
    row, want = PROMPTS[name]
    assert load(tmp_path, "prompts", row) == [want]


def test_lists_of_replies_are_rankings(tmp_path: Path):
    nectar, _ = PREFERENCES["nectar"]
    assert load(tmp_path, "rankings", nectar) == [Ranking(HELLO, ("Hi!", "So.", "No."), (1.0, 2.0, 3.0))]
    ultra, _ = PREFERENCES["openbmb ultrafeedback"]
    assert load(tmp_path, "rankings", ultra) == [Ranking("Hello?", ("So.", "No.", "Hi!"), (-6.0, -4.0, -8.5))]


def test_scored_replies_are_rollouts_and_pairs_are_none(tmp_path: Path):
    row, _ = PREFERENCES["openbmb ultrafeedback"]
    assert load(tmp_path, "rollouts", row)[0] == Rollout("Hello?", "So.", reward=6.0)
    with pytest.raises(DataError, match=r"no replies that were sampled.*give it as --preferences"):
        load(tmp_path, "rollouts", PREFERENCES["llama_factory dpo"][0])


def test_solutions_give_every_good_one_above_every_bad_one(tmp_path: Path):
    row = {
        "question": "2 + 2?",
        **{f"m{i}": {"solution": f"A: {i}", "is_correct": i == 4} for i in range(3, 6)},
    }
    assert load(tmp_path, "preferences", row) == [
        Preference("2 + 2?", "A: 4", "A: 3"),
        Preference("2 + 2?", "A: 4", "A: 5"),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_no_example_of_a_format_looks_like_another(name: str):
    for row in FORMATS[name].examples:
        assert [other for other, known in FORMATS.items() if known.looks_like(row)] == [name]


def test_no_published_row_looks_like_two_formats():
    for row, _ in (*PREFERENCES.values(), *UNPAIRED.values(), *PROMPTS.values()):
        assert len([name for name, known in FORMATS.items() if known.looks_like(row)]) <= 1, row


def test_a_line_that_is_a_list_of_scored_answers_is_one_comparison(tmp_path: Path):
    """As the first release of WebGPT's comparisons has them."""
    row = [
        {"question": {"full_text": "Hello?"}, "answer": "Hi!", "score": 0.5},
        {"question": {"full_text": "Hello?"}, "answer": "No.", "score": -0.5},
    ]
    assert load(tmp_path, "preferences", row, row) == [Preference("Hello?", "Hi!", "No.", 1.0)] * 2


def test_an_arenas_lists_of_turns_are_conversations(tmp_path: Path):
    row = {
        "id": 1,
        "prompt": '["Hello?", "Well?"]',
        "response_a": '["Hey.", "No."]',
        "response_b": '["Hey.", "Hi!"]',
        "winner_model_a": 0,
        "winner_model_b": 1,
        "winner_tie": 0,
    }
    prompt = (*HELLO, Message("assistant", "Hey."), Message("user", "Well?"))
    assert load(tmp_path, "preferences", row) == [Preference(prompt, "Hi!", "No.")]


def test_a_margin_of_the_row_counts_in_every_format(tmp_path: Path):
    for name in ("llama_factory dpo", "hh-rlhf", "skywork", "alpaca dpo"):
        row, want = PREFERENCES[name]
        (loaded,) = load(tmp_path, "preferences", row | {"margin": 0.25})
        assert (loaded.chosen, loaded.margin) == (want.chosen, 0.25)


@pytest.mark.parametrize(("label", "want"), [(1, True), (0, False), ("true", True), ("False", False)])
def test_thumbs_may_be_numbers_or_words(tmp_path: Path, label: object, want: bool):
    row = {"prompt": "Hello?", "completion": "Hi!", "label": label}
    assert load(tmp_path, "unpaired", row) == [Unpaired("Hello?", "Hi!", want)]
