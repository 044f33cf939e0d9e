"""What a report of `trimtab eval` says about one head."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.guidance.errors import HeadError
from trimtab.guidance.evaluation.compare import AtKl, Unreached
from trimtab.guidance.evaluation.curve import Curve, CurvePoint, ScoreSummary
from trimtab.guidance.evaluation.overoptimisation import Overoptimisation, TurningPoint
from trimtab.guidance.evaluation.preferences import LengthBaseline, PartAccuracy, PreferenceReport
from trimtab.guidance.evaluation.report import EvaluationReport, FrontierReport, Subject
from trimtab.guidance.evaluation.sycophancy import PartSycophancy, SycophancyReport
from trimtab.guidance.heads.manifest import BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.publish.card import CardFacts, render_card
from trimtab.guidance.publish.judgement import PICTURES, read_judgement
from trimtab.guidance.statistics import Estimate


def e(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.125, mean + 0.125)


def curve(name: str, kind: str) -> Curve:
    points = tuple(
        CurvePoint(knob, e(knob**2), {"gold": ScoreSummary(e(knob + 0.5))}, 8, perplexity=4 + knob)
        for knob in (0.0, 1.0)
    )
    return Curve(name, kind, "strength", points)


PREFERENCES = PreferenceReport(
    40,
    20,
    LengthBaseline("longer", e(0.5)),
    (
        PartAccuracy("calm", "reward", e(0.75), e(0.25), None),
        PartAccuracy("other", "reward", e(0.625), e(0), None),
    ),
)
FRONTIER = FrontierReport(
    20,
    ("gold",),
    (curve("calm", "head"), curve("other", "head"), curve("static bias", "static_bias")),
    tuple(AtKl(name, "gold", 1.0, 1.0, e(1.5), e(0.5)) for name in ("other", "static bias", "calm")),
    "static bias",
    (Overoptimisation("calm", "gold", "calm reward", TurningPoint(2.0, 1.5, e(0.75), e(0.25), True), ()),),
    problems=("2 replies have no score",),
    unreached=(Unreached("calm", "gold", 4.0, 2.5), Unreached("other", "gold", 4.0, 1.0)),
    num_comparisons=3,
)
SYCOPHANCY = SycophancyReport(4, 8, (PartSycophancy("calm", "reward", e(0.5), e(0.25), e(0.25), e(0.75)),))
REPORT = EvaluationReport(Subject("tiny", ("calm", "other"), {}), PREFERENCES, FRONTIER, SYCOPHANCY)


def write(report: EvaluationReport, folder: Path, pictures: tuple[str, ...] = ()) -> Path:
    (folder / "report.json").write_text(report.to_json())
    for name in pictures:
        (folder / f"{name}.png").write_bytes(b"png")
    return folder


def test_the_head_stands_beside_length_and_the_baselines_and_without_other_heads(tmp_path: Path):
    judgement = read_judgement(write(REPORT, tmp_path), "calm")
    tables = {table.title: table for table in judgement.tables}
    assert tables["Preferences"].rows == (
        ("reward", "75.0 % [62.5, 87.5]", "+25.0 % [+12.5, +37.5]"),
        ("length alone: pick the longer", "50.0 % [37.5, 62.5]", "-"),
    )
    own = tables["What a strength buys, and what it costs"]
    assert [row[0] for row in own.rows] == ["0", "1"]
    assert own.rows[1][1:] == ("1.00 [0.88, 1.12]", "1.50 [1.38, 1.62]", "5.00", "-")
    assert "Left out: 2 replies have no score." in own.note
    assert [row[1:] for row in tables["At equal KL"].rows] == [
        ("calm", "gold", "1.50 [1.38, 1.62]", "+0.50 [+0.38, +0.62] above", "-"),
        ("static bias", "gold", "1.50 [1.38, 1.62]", "+0.50 [+0.38, +0.62] above", "-"),
        ("calm", "gold", "not reached (most: 2.50)", "-", "-"),
    ]
    assert "hold for all 3 of the evaluation at once" in tables["At equal KL"].note
    assert tables["Overoptimisation"].rows[0][-1] == "yes"
    assert tables["Sycophancy"].rows[0][0] == "reward"


def test_sections_that_were_not_asked_for_are_not_there(tmp_path: Path):
    report = EvaluationReport(REPORT.subject, preferences=PREFERENCES)
    assert [t.title for t in read_judgement(write(report, tmp_path), "calm").tables] == ["Preferences"]


def test_pictures_that_are_there_are_linked_and_others_are_not(tmp_path: Path):
    judgement = read_judgement(write(REPORT, tmp_path, ("variety", "frontier", "holiday")), "calm")
    assert [path.name for path, _ in judgement.pictures] == ["frontier.png", "variety.png"]
    base = BaseModel("tiny", "f", "", "")
    card = render_card(
        Manifest("calm", Parts(reward=ScalarPart()), 6, 10, base), CardFacts(), judgement, "evaluation"
    )
    assert card.count("![") == 2
    assert f"![{PICTURES['frontier']}](evaluation/frontier.png)" in card
    assert "| reward | 75.0 % [62.5, 87.5] | +25.0 % [+12.5, +37.5] |" in card


def test_a_report_on_other_heads_is_refused(tmp_path: Path):
    with pytest.raises(HeadError, match="does not judge a head named 'kind'"):
        read_judgement(write(REPORT, tmp_path), "kind")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"preferences": {"parts": [{"head": "calm"}]}}', '{"format": 1}']
)
def test_what_is_no_report_is_refused_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(HeadError, match="cannot be read as a report") as caught:
        read_judgement(tmp_path, "calm")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_report_is_refused(tmp_path: Path):
    with pytest.raises(HeadError, match=r"has no report\.json"):
        read_judgement(tmp_path, "calm")
