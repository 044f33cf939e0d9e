"""Tables of a report: what each section found, as cells of text."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.guidance.evaluation.comparison_tables import equal_price_tables
from trimtab.guidance.evaluation.curve import Curve, CurvePoint
from trimtab.guidance.evaluation.report import EvaluationReport, FrontierReport
from trimtab.guidance.evaluation.steps import FALL, StepsReport
from trimtab.guidance.evaluation.table import NOTHING, Table, number, show


def all_tables(report: EvaluationReport) -> list[Table]:
    """In the order in which they are read; none for a section that was not asked for."""
    tables = []
    if report.preferences is not None:
        tables.append(_preferences(report))
    if report.frontier is not None:
        tables += frontier_tables(report.frontier)
    if report.sycophancy is not None:
        tables.append(_sycophancy(report))
    if report.steps is not None:
        tables.append(_steps(report.steps))
    return tables


def frontier_tables(frontier: FrontierReport) -> list[Table]:
    """Scores against price, what it cost in variety, curves at equal KL, and where gold turns."""
    tables = [_scores(frontier), _glance(frontier), _variety(frontier)]
    tables += equal_price_tables(frontier)
    if frontier.overoptimisation:
        tables.append(_overoptimisation(frontier))
    return tables


def _knob(curve: Curve, point: CurvePoint) -> str:
    return f"{curve.knob} {point.knob:.4g}"


def _preferences(report: EvaluationReport) -> Table:
    found = report.preferences
    assert found is not None
    rows = [
        (
            part.head,
            part.part,
            show(part.accuracy, percent=True),
            show(part.above_length, percent=True, sign=True),
            f"{part.calibration.error:.3f}" if part.calibration else NOTHING,
        )
        for part in found.parts
    ]
    rows.append(
        (
            "length",
            f"pick the {found.length.rule}",
            show(found.length.accuracy, percent=True),
            NOTHING,
            NOTHING,
        )
    )
    return Table(
        "preferences",
        "Preference accuracy",
        ("head", "part", "accuracy", "above length", "calibration error"),
        tuple(rows),
        f"{found.num_pairs} pairs of {found.num_prompts} prompts; 95 % intervals by bootstrap over prompts. "
        "The length baseline reads nothing but the number of tokens.",
    )


def _scores(frontier: FrontierReport) -> Table:
    names = [name for name in frontier.score_names if _is_scored(frontier, name)]
    rows = [
        (
            curve.name,
            _knob(curve, point),
            ("≤ " if curve.is_bound and point.kl.mean else "") + _kl(point, curve),
            *(_score(point, name) for name in names),
            _win_rate(point, frontier.gold),
            number(point.cost, ".1f"),
        )
        for curve in frontier.curves
        for point in curve.points
    ]
    return Table(
        "frontier",
        "Frontier: what each nat buys",
        ("curve", "knob", "KL (nats per reply)", *names, "wins over plain", "cost"),
        tuple(rows),
        f"{frontier.num_prompts} prompts; means with 95 % intervals by bootstrap over prompts, and over "
        "training seeds where there are several. Best-of-n: KL is the bound log n - (n-1)/n, scores are "
        "over all subsets of one set of plain replies. A win is over the plain reply of the same prompt and "
        "random numbers; best-of-n's is over a plain reply that it did not choose from. Cost: tokens "
        "that the model was run on for each token of a reply.",
    )


def _is_scored(frontier: FrontierReport, name: str) -> bool:
    points = [point for curve in frontier.curves for point in curve.points]
    return any(name in point.scores and point.scores[name].estimate for point in points)


def _kl(point: CurvePoint, curve: Curve) -> str:
    return f"{point.kl.mean:.2f}" if curve.is_bound else show(point.kl)


def _score(point: CurvePoint, name: str) -> str:
    if name not in point.scores:
        return NOTHING
    summary = point.scores[name]
    unscored = f" ({summary.unscored:.0%} unscored)" if summary.unscored else ""
    return show(summary.estimate) + unscored


def _win_rate(point: CurvePoint, gold: Sequence[str]) -> str:
    rates = [point.scores[name].win_rate for name in gold if name in point.scores]
    return show(rates[0], percent=True) if rates else NOTHING


def _glance(frontier: FrontierReport) -> Table:
    """Every measure of a point in one row, without intervals: what fits a page."""
    names = [name for name in frontier.score_names if _is_scored(frontier, name)]
    plain = next((p for c in frontier.curves for p in c.points if p.knob == 0 and p.perplexity), None)
    rows = [
        (
            curve.name,
            _knob(curve, point),
            *(_mean_of(point, name) for name in names),
            f"{point.kl.mean:.2f}",
            _beside_plain(point.perplexity, plain.perplexity if plain else None),
            _beside_plain(_distinct_2(point), _distinct_2(plain) if plain else None),
            number(point.stopped, ".0%"),
            number(point.words, ".1f"),
        )
        for curve in frontier.curves
        for point in curve.points
        if curve.kind != "best_of_n"
    ]
    return Table(
        "glance",
        "Every measure at every strength",
        ("curve", "knob", *names, "KL per reply", "perplexity", "distinct-2 within", "stopped", "words"),
        tuple(rows),
        "Means. Perplexity is the frozen policy's. In brackets: times the plain policy's.",
    )


def _mean_of(point: CurvePoint, name: str) -> str:
    estimate = point.scores[name].estimate if name in point.scores else None
    return number(None if estimate is None else estimate.mean)


def _distinct_2(point: CurvePoint) -> float | None:
    return None if point.variety is None else point.variety.within.distinct_2


def _beside_plain(value: float | None, plain: float | None) -> str:
    return number(value) + (f" ({value / plain:.2f})" if value is not None and plain else "")


def _variety(frontier: FrontierReport) -> Table:
    rows = []
    for curve in frontier.curves:
        for point in curve.points:
            if point.variety is None:
                continue
            within, across = point.variety.within, point.variety.across
            rows.append(
                (
                    curve.name,
                    _knob(curve, point),
                    *(number(n) for n in (within.distinct_1, within.distinct_2, within.self_bleu)),
                    *(number(n) for n in (across.distinct_1, across.distinct_2, across.self_bleu)),
                    number(point.entropy),
                    number(point.perplexity),
                    number(point.length, ".1f"),
                    number(point.stopped, ".0%"),
                    number(point.flip_rate, ".1%"),
                )
            )
    return Table(
        "variety",
        "Variety and fluency: what steering costs beside KL",
        (
            "curve",
            "knob",
            *(f"{name} within" for name in ("distinct-1", "distinct-2", "self-BLEU")),
            *(f"{name} across" for name in ("distinct-1", "distinct-2", "self-BLEU")),
            "entropy (nats)",
            "perplexity",
            "tokens",
            "stopped",
            "flips",
        ),
        tuple(rows),
        "Within: among replies to one prompt; across: among first replies to all prompts; as many replies "
        "everywhere. Perplexity is the frozen policy's; flips are tokens at which it preferred another.",
    )


def _overoptimisation(frontier: FrontierReport) -> Table:
    rows = []
    for found in frontier.overoptimisation:
        turn = found.turn
        fits = [
            f"{fit.form}: a {fit.alpha.mean:.3g}, b {show(fit.beta)}, error {fit.error:.2g}"
            for fit in found.fits
            if fit.is_carried
        ]
        rows.append(
            (
                found.curve,
                found.gold,
                "no turn seen" if turn is None else f"{turn.knob:g} (√KL {turn.root_kl:.2f})",
                NOTHING if turn is None else show(turn.drop, sign=True),
                NOTHING if turn is None else show(turn.proxy_gain, sign=True),
                "yes" if turn is not None and turn.has_turned else "no",
                "; ".join(fits) or "not carried by the data",
            )
        )
    return Table(
        "overoptimisation",
        "Overoptimisation: where gold turns down",
        (
            "curve",
            "gold",
            "highest at",
            "drop to the end",
            "proxy meanwhile",
            "overoptimised",
            "fit in d = √KL",
        ),
        tuple(rows),
        "Overoptimised: gold has fallen by more than its interval while the proxy did not fall.",
    )


def _sycophancy(report: EvaluationReport) -> Table:
    found = report.sycophancy
    assert found is not None
    rows = tuple(
        (
            part.head,
            part.part,
            show(part.wrong_user, percent=True),
            show(part.neutral, percent=True),
            show(part.swayed, percent=True, sign=True),
            show(part.right_user, percent=True),
        )
        for part in found.parts
    )
    return Table(
        "sycophancy",
        "Sycophancy: agreeing with a user who is wrong",
        (
            "head",
            "part",
            "agrees with a wrong user",
            "with a wrong claim",
            "swayed by",
            "agrees with a right user",
        ),
        rows,
        f"{found.num_facts} facts, {found.num_pairs} pairs of replies. Swayed by: what the user's opinion "
        "changes, over the same replies; above zero is sycophancy.",
    )


def _steps(found: StepsReport) -> Table:
    rows = tuple(
        (
            head.head,
            show(head.accuracy, percent=True),
            show(head.above_length, percent=True, sign=True),
            number(head.auc),
            *(show(estimate, percent=True) for estimate in (*head.fallen, *head.first_fall)),
        )
        for head in found.heads
    )
    return Table(
        "steps",
        "Steps of reasoning: what the value says of right and wrong traces",
        (
            "head",
            "accuracy of the last value",
            "above length",
            "AUC",
            *(f"{name}, {kind}" for name in ("falls", "first falls after") for kind in ("right", "wrong")),
        ),
        rows,
        f"{found.num_traces} traces of {found.num_questions} questions, {found.num_right} of them right, "
        f"{found.num_steps:.1f} steps each; 95 % intervals by bootstrap over questions. Accuracy: over pairs "
        f"of a right and a wrong trace to one question. A value falls where a step lowers it by {FALL} "
        "standard units or more; where it first does is told in steps that lie before, of all.",
    )
