"""Worker that runs genlm-control's SMC in its own virtual environment: a JSON job a line in, an answer out.

Started by benchmarks.rules as `PYTHON genlm_worker.py MODEL_FOLDER HEAD_FOLDER`, with Trimtab's heads on its
path for the value. Its particles are drawn by the model through the Hugging Face backend; the critic is
exp(βV), read where the model runs for the next token anyway, so that the value costs no run of its own, and
the prompt's keys and values are kept, as the backend offers.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-subclassing-any

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes to stderr, so that stdout carries JSON alone
    from importlib.metadata import version  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from genlm.backend.llm import AsyncTransformer  # noqa: PLC0415
    from genlm.control import SMC, Potential, PromptedLLM, direct_token_sampler  # noqa: PLC0415

    from trimtab.guidance.heads.store import load_head  # noqa: PLC0415

    model, head = sys.argv[1:]
    loaded, manifest = load_head(Path(head))
    assert loaded.value is not None
    value = loaded.value
    torch.set_grad_enabled(False)

    class Measuring(AsyncTransformer):
        """Keeps the value behind each sequence that it was asked about. None of its queries are of a prompt
        but by `cache_kv`, so their tokens are those of the reply."""

        def watch(self, num_particles: int) -> None:
            self.batch_size = num_particles
            self.by_reply: dict[tuple[int, ...], float] = {}

        def _evaluate_queries(self, queries):
            seen = []
            hook = self.model.base_model.register_forward_hook(lambda module, args, out: seen.append(out[0]))
            super()._evaluate_queries(queries)
            hook.remove()
            for place, tokens in enumerate(dict.fromkeys(tuple(query.prompt) for query in queries)):
                raw = value(seen[0][place, len(tokens) - 1 : len(tokens)])
                self.by_reply[tokens] = (float(raw) - manifest.reward_mean) / manifest.reward_std

    class Value(Potential):
        """exp(β V(y)) of a reply's tokens, 1 of none."""

        def __init__(self, llm: PromptedLLM, strength: float) -> None:
            super().__init__(llm.vocab, tables=llm.tables)
            self._llm, self._strength = llm, strength

        async def prefix(self, context):
            tokens = tuple(token.token_id for token in context)
            if not tokens:
                return 0.0
            await self._llm.model.next_token_logprobs([*self._llm.prompt_ids, *tokens])
            return self._strength * self._llm.model.by_reply[tokens]

        complete = prefix

        async def batch_prefix(self, contexts):
            return np.array(await asyncio.gather(*map(self.prefix, contexts)))

        batch_complete = batch_prefix

    backend = Measuring.from_name(model, hf_opts={"device_map": "cpu", "dtype": torch.float32})
    # Replies end at max_tokens: what counts as the end is a token that the model hardly ever says.
    never = max(backend.byte_vocab, key=lambda token: token.token_id)
    llm = PromptedLLM(backend, eos_byte_strings=[never.byte_string])
    print(json.dumps({"version": version("genlm-control")}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        np.random.seed(job["seed"])
        torch.manual_seed(job["seed"])
        llm.prompt_ids = job["prompt"]
        start = time.perf_counter()
        backend.clear_cache()
        backend.watch(job["particles"])
        backend.cache_kv(job["prompt"])
        smc = SMC(direct_token_sampler(llm), critic=Value(llm, job["strength"]))
        # One more: the last token is the end.
        sequences = asyncio.run(
            smc(job["particles"], job["resample"], job["num_new_tokens"] + 1, resampling_method="systematic")
        )
        seconds = time.perf_counter() - start
        lengths = [len(context) - 1 for context in sequences.contexts]
        answer = {"seconds": seconds, "tokens": sum(lengths) / len(lengths), "values": len(backend.by_reply)}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
