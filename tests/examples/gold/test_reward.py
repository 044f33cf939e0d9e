from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from examples.gold.reward import LEXICON_VARIABLE, score, score_tokens
from trimtab.guidance.errors import DataError


@pytest.fixture(autouse=True)
def lexicon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "lexicon.zip", "w") as archive:
        archive.writestr("lexicon/positive-words.txt", "; of words\n\nhappy\nwell-loved\n")
        archive.writestr("lexicon/negative-words.txt", "sad\n")
        archive.writestr("lexicon/README.txt", "happy sad")
    monkeypatch.setenv(LEXICON_VARIABLE, str(tmp_path / "lexicon.zip"))


def test_positive_less_negative_words_in_a_hundred():
    """ "A Happy, well-loved dog was sad." has 6 words, of which 2 are positive and 1 is negative: 100/6."""
    assert score("", " A Happy, well-loved dog was sad.") == pytest.approx(100 / 6)
    assert score("", "They were happy<|") == pytest.approx(100 / 3), "the end token is no word"
    assert score("", "...") == 0


def test_tokens_share_out_the_reply_s_score():
    tokens = [" A", " hap", "py", ",", " unhappy", " sad", " do", "g", ""]
    reply = "".join(tokens)
    fifth = 100 / 5
    assert score_tokens("", reply, tokens) == pytest.approx([0, 0, fifth, 0, 0, -fifth, 0, 0, 0])
    assert sum(score_tokens("", reply, tokens)) == pytest.approx(score("", reply))


def test_a_word_that_ends_the_reply_counts_for_the_last_token_that_holds_it():
    assert score_tokens("", "so happy", [" so", " happy", ""]) == pytest.approx([0, 50, 0])


@pytest.mark.parametrize("lexicon", ["", "/nowhere/lexicon.zip"])
def test_an_absent_lexicon_is_named(lexicon: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(LEXICON_VARIABLE, lexicon)
    with pytest.raises(DataError, match=LEXICON_VARIABLE):
        score("", "happy")
