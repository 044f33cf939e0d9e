"""Steps of reasoning: reads traces and their verdicts, and where in them a step ends."""

from __future__ import annotations

from trimtab.guidance.data.load import load_rows
from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.steps import StepsReport, Trace, judge_steps, step_ends
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.text.prompt_form import form_of, mismatches
from trimtab.server.commands.eval.bench import Materials
from trimtab.server.engine.detokenizer import TextDecoder


def measure_steps(materials: Materials) -> StepsReport:
    """Raises DataError for traces that cannot be read or do not fit, HeadError where no head has a value."""
    config, policy = materials.config, materials.policy
    assert config.steps is not None
    options = config.row_options
    form = form_of(policy.tokenizer, options.rows, [config.steps])
    rows = load_rows("unpaired", config.steps, options, as_text=form == "text").rows
    encoder = ReplyEncoder(policy.tokenizer, form, end_ids=policy.end_ids, extra_keys=options.extra_columns)
    texts = TextDecoder(policy.tokenizer)
    traces = []
    for row in rows:
        reply = encoder.encode(row.prompt, row.completion, row.sampled)
        ends = step_ends(_texts(texts, reply))
        if ends:
            traces.append(Trace(reply, row.label, ends))
    for line in [*encoder.notes.lines(), *mismatches([m for _, m in materials.heads], form)]:
        print(f"{config.steps}: {line}")
    fitting = [trace for trace in traces if materials.fits(trace.reply)]
    num_out = len(rows) - len(fitting)
    if not fitting or (num_out and options.on_bad_rows == "refuse"):
        raise DataError(
            f"{config.steps}: {num_out} of {len(rows)} traces are empty or longer than the context: leave "
            "them out with --on-bad-rows skip"
        )
    if num_out:
        print(f"left out: {num_out} traces that are empty or longer than the context")
    return judge_steps(fitting, materials.heads, materials.features, seed=config.seed)


def _texts(decoder: TextDecoder, reply: EncodedReply) -> list[str]:
    """Of the tokens that were drawn, without the one that ends the reply."""
    detokenizer = decoder.detokenizer(reply.prompt_ids)
    texts = [detokenizer.push(token) for token in reply.reply_ids[:-1]]
    if texts:
        texts[-1] += detokenizer.flush()
    return texts
