"""Reward models as scorers: what each reads, alone and in company."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import EOS, SIZES, VOCAB_SIZE, byte_tokenizer, save_random_head, save_random_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from trimtab.guidance.data.rollouts import RolloutRow, read_rollouts
from trimtab.guidance.errors import HeadError, PolicyError, UserError
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import save_head
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.message import Message
from trimtab.server.cli import main
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.scoring.choose import (
    ScorerContext,
    make_scorer,
    reward_folder,
    split_label,
    with_reward_head,
)
from trimtab.server.scoring.classifier import ClassifierScorer

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eos>\n{% endfor %}"
TEXTS = ["", "a", "some words", "x" * 60]


def rows(prompt="say", texts=TEXTS, is_cut=False):
    end = [] if is_cut else [EOS]
    return [
        RolloutRow(prompt, text, (*byte_tokenizer()(text)["input_ids"], *end), is_cut, i, 0, 0, 0.0, 0.0)
        for i, text in enumerate(texts)
    ]


def save_classifier(folder: Path, model, template: str | None = TEMPLATE, **config) -> Path:
    for name, value in config.items():
        setattr(model.config, name, value)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def llama(num_labels: int = 1, **config) -> LlamaForSequenceClassification:
    torch.manual_seed(5)
    return LlamaForSequenceClassification(LlamaConfig(**(SIZES | {"num_labels": num_labels} | config)))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policy") / "tiny")


def alone(folder: Path, ids: list[int]) -> float:
    """As the model's authors would score one conversation."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, 0].item()


@pytest.mark.parametrize("pad", [258, EOS, None])
def test_a_row_scores_in_company_what_it_scores_alone(policy, tmp_path, pad):
    """With the end token as padding a row's own end counts for padding, alone as well as in company."""
    folder = save_classifier(tmp_path / "rm", llama(), pad_token_id=pad)
    scorer = ClassifierScorer(folder, "", policy=policy)
    turns = (Message("user", "say"),)
    ids = [byte_tokenizer()(f"[user] say<eos>\n[assistant] {text}<eos>\n")["input_ids"] for text in TEXTS]
    found = [score.reward for score in scorer.score(rows(turns))]
    assert found == pytest.approx([alone(folder, row) for row in ids], abs=1e-4)
    assert len({round(reward, 4) for reward in found}) == len(TEXTS)
    strings = [score.reward for score in scorer.score(rows())]
    assert strings == pytest.approx(
        [alone(folder, byte_tokenizer()("say" + t)["input_ids"]) for t in TEXTS], abs=1e-4
    )


def test_an_encoder_reads_its_mask(policy, tmp_path):
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(
        vocab_size=VOCAB_SIZE, max_position_embeddings=96, num_labels=1, pad_token_id=258, **sizes
    )
    folder = save_classifier(tmp_path / "bert", BertForSequenceClassification(config))
    found = [score.reward for score in ClassifierScorer(folder, "", policy=policy).score(rows())]
    wanted = [alone(folder, byte_tokenizer()("say" + text)["input_ids"]) for text in TEXTS]
    assert found == pytest.approx(wanted, abs=1e-4)
    too_long = ClassifierScorer(folder, "", policy=policy).score(rows(texts=["y" * 100, "z"]))
    assert "reads 96 tokens, here are 103" in too_long[0].problem
    assert too_long[1].reward is not None


def test_of_several_labels_one_is_named(policy, tmp_path):
    names = {"id2label": {0: "sad", 1: "glad", 2: "neither"}, "label2id": {"sad": 0, "glad": 1, "neither": 2}}
    folder = save_classifier(tmp_path / "rm", llama(num_labels=3), **names)
    with pytest.raises(UserError, match=r"has 3 labels: write .*:LABEL with one of sad, glad, neither"):
        ClassifierScorer(folder, "", policy=policy)
    with pytest.raises(UserError, match="no label 'mad'"):
        ClassifierScorer(folder, "mad", policy=policy)
    by_label = [
        [s.reward for s in ClassifierScorer(folder, label, policy=policy).score(rows())]
        for label in ("sad", "glad", "2")
    ]
    for probabilities in zip(*torch.tensor(by_label).exp().tolist(), strict=True):
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert ClassifierScorer(folder, "glad", policy=policy).units == "log-probability of glad"


def test_what_is_no_reward_model_is_told_in_one_line(policy, tmp_path):
    with pytest.raises(HeadError, match="no trained sequence classification"):
        ClassifierScorer(policy, "", policy=policy)
    with pytest.raises(PolicyError, match="no/such"):
        ClassifierScorer("no/such/model", "", policy=policy)
    model = llama()
    torch.save(model.state_dict(), (tmp_path / "pickled").mkdir() or tmp_path / "pickled/pytorch_model.bin")
    model.config.save_pretrained(tmp_path / "pickled")
    with pytest.raises(PolicyError, match="safetensors"):
        ClassifierScorer(tmp_path / "pickled", "", policy=policy)


def test_messages_without_a_template_are_a_named_problem_unless_the_tokenizer_pairs(policy, tmp_path):
    folder = save_classifier(tmp_path / "rm", llama(), template=None)
    (score,) = ClassifierScorer(folder, "", policy=policy).score(rows((Message("user", "a"),), ["b"]))
    assert "no chat template, and the prompts are messages" in score.problem


def test_an_exported_reward_scores_what_the_reward_part_does(policy, tmp_path, monkeypatch):
    identity, parts = load_policy(policy).identity, Parts(reward=ScalarPart())
    torch.manual_seed(0)
    head = Head(parts, identity.hidden_size, identity.vocab_size)
    torch.nn.init.normal_(head.reward.weight)
    torch.nn.init.constant_(head.reward.bias, 0.75)
    sizes = (identity.hidden_size, identity.vocab_size)
    save_head(tmp_path / "calm", head, Manifest("calm", parts, *sizes, identity.base_model, -1.0, 3.0))
    arguments = ["--model", str(policy), "--out", str(tmp_path / "exported")]
    assert main(["heads", "export-reward", str(tmp_path / "calm"), *arguments]) == 0
    context = ScorerContext(policy, (), JudgeConfig(), tmp_path / "answers.jsonl")
    for given in (rows(), rows(is_cut=True, texts=TEXTS[1:])):
        by_head, by_model = (
            [s.reward for s in make_scorer(name, context).score(given)]
            for name in (f"reward:{tmp_path / 'calm'}", f"model:{tmp_path / 'exported'}")
        )
        assert by_model == pytest.approx(by_head, abs=1e-4)
        assert len(set(by_head)) == len(given)


def test_rollouts_and_an_evaluation_are_scored_by_a_reward_model(policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimtab.guidance.evaluation.page.all_pictures", lambda report: [])
    save_random_head(Path("heads"), policy, "mute", parts="a")
    folder = save_classifier(Path("rm"), llama())
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(3)))
    common = ["--model", str(policy), "--prompts", "prompts.jsonl", "--num-replies", "2", "--max-tokens", "6"]
    assert main(["rollouts", *common, "--score", f"model:{folder}", "--out", "out.parquet"]) == 0
    rows, made_by = read_rollouts(Path("out.parquet"))
    scorer = ClassifierScorer(folder, "", policy=policy)
    assert [row.reward for row in rows] == [score.reward for score in scorer.score(rows)]
    assert (made_by["score"], made_by["units"]) == (f"model:{folder}", "raw, of the reward model")
    judged = ["--gold", f"model:{folder}", "--heads", "heads/mute", "--strengths", "1", "--out", "judged"]
    assert main(["eval", *common, *judged, "--best-of", "2", "--at-kl", "0.01"]) == 0
    assert json.loads(Path("judged/report.json").read_text())["frontier"]["gold"] == ["gold"]
    several = save_classifier(Path("rm3"), llama(num_labels=3))
    assert main(["rollouts", *common, "--score", f"model:{several}", "--out", "b.parquet"]) == 1


def test_a_reward_is_found_by_name_or_folder_in_all_commands_alike(policy, tmp_path, monkeypatch):
    kind, mute = (
        save_random_head(tmp_path / "heads", policy, *case[:1], parts=case[1])
        for case in (("kind", "ar"), ("mute", "a"))
    )
    other = save_random_head(tmp_path / "others", policy, "kind", seed=4, parts="r")
    monkeypatch.chdir(tmp_path / "heads")
    assert reward_folder("kind", (kind, mute)) == kind
    assert reward_folder(str(other), (kind, mute)) == other
    assert reward_folder("kind", ()) == Path("kind")
    assert with_reward_head("reward:kind", (kind, mute), "--gold") == ((kind, mute), "kind")
    assert with_reward_head(f"reward:{kind}", (mute,), "--gold") == ((mute, kind), "kind")
    assert with_reward_head("function:f:g", (mute,), "--gold") == ((mute,), "")
    with pytest.raises(HeadError, match="--gold reward:mute: the head has no reward part; with one: kind"):
        reward_folder("mute", (kind, mute), "--gold")
    with pytest.raises(HeadError, match="loaded are kind, mute"):
        reward_folder("none", (kind, mute))
    monkeypatch.chdir(tmp_path / "others")
    with pytest.raises(UserError, match="write which of the two"):
        reward_folder("kind", (kind,))


def test_a_label_comes_after_the_last_colon_and_a_folder_may_have_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_label("org/model") == ("org/model", "")
    assert split_label("org/model:good") == ("org/model", "good")
    Path("v:1").mkdir()
    assert split_label("v:1") == ("v:1", "")
    assert split_label("v:1:good") == ("v:1", "good")
