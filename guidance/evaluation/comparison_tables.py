"""Tables of curves at equal price: their scores, what may be claimed of them, and the replies beside them."""

from __future__ import annotations

from trimtab.guidance.evaluation.compare import Unreached
from trimtab.guidance.evaluation.report import FrontierReport
from trimtab.guidance.evaluation.table import NOTHING, Table, number, show, show_difference

_TRIALS_SHOWN = 12


def equal_price_tables(frontier: FrontierReport) -> list[Table]:
    """No table where no prices were asked for, and nothing costs more than a plain reply."""
    tables = []
    if frontier.at_kl or frontier.unreached:
        tables.append(_at_kl(frontier))
    if frontier.at_kl:
        tables.append(_beside(frontier))
    if frontier.at_cost:
        tables.append(_at_cost(frontier))
    if frontier.bias_trials:
        tables.append(_bias_trials(frontier))
    if frontier.wordings:
        tables.append(_wordings(frontier))
    if frontier.steering_trials:
        tables.append(_steering_trials(frontier))
    return tables


def _at_kl(frontier: FrontierReport) -> Table:
    """Rows that are found and those that are not reached, by score, price and curve."""
    prompts = [curve.name for curve in frontier.curves if curve.kind == "system_prompt"]
    rows: dict[tuple[str, float, str], tuple[str, ...]] = {
        (found.score, found.kl, found.curve): (
            f"{found.kl:.4g}",
            found.curve,
            found.score,
            f"{found.knob:.3g}",
            show(found.estimate),
            " ".join(f"{score:.2f}" for score in found.by_seed) or NOTHING,
            show_difference(found.above_baseline),
            show_difference(found.above_best_of_n),
            *([show_difference(found.above_system_prompt)] if prompts else []),
            f"{found.aside.num_sampled:.3g}",
        )
        for found in frontier.at_kl
    }
    for missed in frontier.unreached:
        cells = (f"{missed.kl:.4g}", missed.curve, missed.score, NOTHING, _unreached_text(missed))
        rows[missed.score, missed.kl, missed.curve] = (*cells, *([NOTHING] * (5 if prompts else 4)))
    baseline = frontier.baseline or "baseline"
    return Table(
        "equal-kl",
        "At equal KL",
        (
            *("KL per reply", "curve", "score", "at knob", "estimate", "by seed"),
            *(f"from {baseline}", "from best-of-n", *(f"from {name}" for name in prompts), "samples"),
        ),
        tuple(row for _, row in sorted(rows.items(), key=lambda item: item[0])),
        _equal_kl_note(frontier),
    )


def _equal_kl_note(frontier: FrontierReport) -> str:
    """How the table was made, and what may be claimed by it."""
    notes = ["Between a curve's points, linearly in √KL, nats per reply."]
    if frontier.num_comparisons:
        notes.append(
            "Differences are at the same KL, over the same resamples of prompts; their intervals hold for "
            f"all {frontier.num_comparisons} at once in 95 % of cases (max-t bootstrap). Above and below are "
            "said only where these leave out zero."
        )
    if any(curve.kind == "best_of_n" for curve in frontier.curves):
        notes.append(
            "Best-of-n stands at the bound log n - (n-1)/n, at every n, and its KL is not above that. "
            "Samples: replies sampled for each that is kept."
        )
    if any(curve.members for curve in frontier.curves):
        notes.append(
            "Curves of several training seeds are their mean, by seed beside it; their intervals are over "
            "seeds and prompts, others over prompts alone."
        )
    if any(curve.kind == "system_prompt" for curve in frontier.curves):
        notes.append(
            "A system prompt has no strength: it is compared at its own KL, where all curves are read, too."
        )
    if frontier.unreached:
        notes.append(f"Not reached: {_unreached_names(frontier)}.")
    return " ".join(notes)


def _unreached_text(missed: Unreached) -> str:
    if missed.most is None:
        return "no replies to these prompts"
    return f"does not reach {missed.kl:.4g} nats (most: {missed.most:.2f})"


def _unreached_names(frontier: FrontierReport) -> str:
    """Each curve that falls short, with the prices that it does not reach."""
    kls: dict[str, list[str]] = {}
    for missed in frontier.unreached:
        kls.setdefault(missed.curve, []).append(f"{missed.kl:.4g}")
    return "; ".join(f"{curve} at {', '.join(dict.fromkeys(prices))} nats" for curve, prices in kls.items())


def _beside(frontier: FrontierReport) -> Table:
    """What replies are like at the same prices; the same for every score, so shown for the first."""
    shown = [found for found in frontier.at_kl if found.score == frontier.at_kl[0].score]
    rows = tuple(
        (
            ("≤ " if _is_bound(frontier, found.curve) else "") + f"{found.kl:.4g}",
            found.curve,
            number(found.aside.kl_per_token, ".4f"),
            number(found.aside.length, ".1f"),
            number(found.aside.stopped, ".0%"),
            number(found.aside.perplexity),
            number(found.aside.distinct_2, ".3f"),
        )
        for found in sorted(shown, key=lambda found: (found.kl, found.curve))
    )
    return Table(
        "beside",
        "At equal KL: what the replies are like",
        ("KL per reply", "curve", "KL per token", "tokens", "stopped", "perplexity", "distinct-2 within"),
        rows,
        "Between a curve's points, linearly in √KL. KL per token is KL per reply ÷ tokens per reply: shorter "
        "replies are steered harder for the same nats. Perplexity is the frozen policy's.",
    )


def _at_cost(frontier: FrontierReport) -> Table:
    rivals = list(dict.fromkeys(by for row in frontier.at_cost for by in row.above))
    rows = tuple(
        (
            f"{row.cost:.1f}",
            row.curve,
            f"{row.knob:.4g}",
            row.score,
            show(row.estimate),
            *(show_difference(row.above.get(by)) for by in rivals),
            number(row.perplexity),
        )
        for row in sorted(frontier.at_cost, key=lambda row: (row.score, row.cost))
    )
    return Table(
        "equal-cost",
        "At equal cost",
        (
            *("cost", "curve", "at knob", "score", "estimate"),
            *(f"from best-of-n by {by}" for by in rivals),
            "perplexity",
        ),
        rows,
        "Cost: tokens that the model was run on for each token of a reply. Differences are from best-of-n "
        "that costs as much, linearly between one n and the next; their intervals hold for all of the table "
        "at once in 95 % of cases (max-t bootstrap). Nothing where best-of-n was not sampled so far.",
    )


def _is_bound(frontier: FrontierReport, name: str) -> bool:
    return any(curve.is_bound for curve in frontier.curves if curve.name == name)


def _wordings(frontier: FrontierReport) -> Table:
    rows = tuple(
        (w.name, w.text, f"{w.tokens_added:+.1f}", show(w.score), "chosen" if w.is_chosen else "")
        for w in frontier.wordings
    )
    return Table(
        "system-prompts",
        "System prompts: wordings on the tuning prompts",
        ("name", "system", "tokens added to a prompt", frontier.gold[0] if frontier.gold else "score", ""),
        rows,
        "Chosen by the highest mean; the prompts of the other tables had no say. Its KL is exact along its "
        "replies: at each token that of the policy behind the system prompt from the policy without it.",
    )


def _steering_trials(frontier: FrontierReport) -> Table:
    rows = tuple(
        (
            f"{trial.layer}",
            f"{trial.coefficient:.3g}",
            f"{trial.slope:.2f} at {trial.kl:.2f}",
            "chosen" if trial.is_chosen else "",
        )
        for trial in frontier.steering_trials
    )
    return Table(
        "activation-steering",
        "Activation steering: layers on the tuning prompts",
        ("layer", "coefficient", "gain ÷ √KL, at KL", ""),
        rows,
        "The prompts of the other tables had no say. A layer's output gains the mean difference of replies "
        "of high and of low reward, times the coefficient, at every position.",
    )


def _bias_trials(frontier: FrontierReport) -> Table:
    trials = frontier.bias_trials
    kls = {found.kl for found in frontier.at_kl} | {missed.kl for missed in frontier.unreached}
    rows = tuple(
        (
            f"{trial.setting.discount:g}",
            f"{trial.setting.shrinkage:g}",
            f"{trial.num_tokens}" + (" (all)" if trial.setting.max_tokens is None else ""),
            f"{trial.slope:.2f} at {trial.first_kl:.2f}",
            *([number(score) for score in trial.scores] or [NOTHING] * len(kls)),
            "chosen" if trial.is_chosen else "",
        )
        for trial in trials[:_TRIALS_SHOWN]
    )
    return Table(
        "static-bias",
        "The static bias: settings on the tuning prompts",
        (
            *("discount", "shrinkage", "tokens", "gain ÷ √KL, at KL"),
            *(f"score at {kl:g} nats" for kl in sorted(kls)),
            "",
        ),
        rows,
        f"The best {len(rows)} of {len(trials)}; the prompts of the other tables had no say. All were tried "
        "at one price, the best few then at every one, where the highest mean was chosen.",
    )
