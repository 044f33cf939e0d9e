from __future__ import annotations

import math

import pytest
import torch

from benchmarks.gpu.engine.peers import TiltHook
from benchmarks.gpu.engine.speed import SteadyDecode, busy_share, require_guidance
from benchmarks.gpu.engine.subject import LLAMA_3_8B, TOY_ENGINE_SIZES, Subject, random_prompts
from benchmarks.gpu.findings import Findings
from trimtab.server.engine.request import Guidance

SIZES = TOY_ENGINE_SIZES


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(SIZES.small, torch.device("cpu"), torch.float32, SIZES.rank)


def test_a_device_is_busy_while_anything_runs_on_it():
    assert busy_share([(0, 4), (2, 6), (3, 4), (8, 10)]) == 0.8
    assert busy_share([(5, 6)]) == 1.0
    assert math.isnan(busy_share([]))


def test_every_steady_step_draws_one_token_for_every_row(subject: Subject):
    engine = subject.engine(max_num_seqs=3)
    guidance = [Guidance(1.0, (("tied", 1.0),)), Guidance(), Guidance(-1.0, (("lowrank", 1.0),))]
    run = SteadyDecode(engine, random_prompts(SIZES.small, [5, 30, 9]), guidance, 40)
    before = [len(live.replies[0].token_ids) for live in engine._live.values()]
    assert len(run.steps(7)) == 7
    after = [len(live.replies[0].token_ids) for live in engine._live.values()]
    assert [b - a for a, b in zip(before, after, strict=True)] == [7, 7, 7]
    run.finish()
    assert not engine.has_work


def test_a_rule_that_does_not_run_is_noticed(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    engine = subject.engine(max_num_seqs=1)
    monkeypatch.setattr(engine.bank, "weights_row", lambda heads: [0.0, 0.0])
    run = SteadyDecode(engine, random_prompts(SIZES.small, [5]), [Guidance(1.0, (("tied", 1.0),))], 20)
    findings = Findings()
    require_guidance(findings, run.finish())
    assert findings.broken == ["guided replies that spent no KL: 1, at most 0"]


def test_kl_that_a_reply_without_guidance_spends_is_noticed_and_so_is_one_that_is_no_number():
    findings = Findings()
    require_guidance(findings, [(False, 0.0), (True, 0.5)])
    assert not findings.broken
    require_guidance(findings, [(False, 1e-9), (True, math.nan)])
    assert len(findings.broken) == 2


def test_the_hook_is_the_engine_s_rule_and_knows_whether_it_ran(subject: Subject):
    head = subject.heads["lowrank"][0]
    hook = TiltHook(head, 2.0, torch.device("cpu"))
    h, lm_head = torch.randn(1, 3, SIZES.small.hidden), subject.model.get_output_embeddings()
    z = lm_head(h)
    tilted = hook(lm_head, (h,), z)
    assert head.advantage is not None
    advantage = head.advantage(h, lm_head.weight)
    difference = tilted - z - 2 * advantage  # −2 E[A], the same for every token
    assert (difference - difference[..., :1]).abs().max() < 1e-4
    assert ((z.softmax(-1) * (tilted - z)).sum(-1)).abs().max() < 1e-4
    with pytest.raises(AssertionError, match="every token"):
        hook.assert_ran(4)
    hook.assert_ran(3)
    with pytest.raises(AssertionError, match="every token"):
        hook.assert_ran(1)


def test_the_large_model_has_llama_3_8b_s_weights():
    size = LLAMA_3_8B
    per_layer = 2 * size.hidden**2 * (1 + size.kv_heads / size.heads) + 3 * size.hidden * size.intermediate
    total = size.layers * per_layer + 2 * size.vocab * size.hidden
    assert total / 1e9 == pytest.approx(8.03, abs=0.01)
