"""Worker that runs vLLM in its own virtual environment: one JSON job a line in, one line of seconds out.

Started by benchmarks.cpu as `PYTHON vllm_worker.py MODEL_FOLDER DTYPE`; imports nothing of trimtab.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints goes to stderr, so that stdout carries JSON alone
    from vllm import LLM, SamplingParams, __version__  # noqa: PLC0415

    llm = LLM(sys.argv[1], dtype=sys.argv[2], max_model_len=2048, seed=0, enable_prefix_caching=True,
              max_num_seqs=64)  # fmt: skip
    print(json.dumps({"version": __version__}), file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        params = SamplingParams(temperature=1.0, max_tokens=job["num_new_tokens"], ignore_eos=True)
        prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert all(len(o.outputs[0].token_ids) == job["num_new_tokens"] for o in outputs)
        print(json.dumps({"seconds": seconds}), file=out, flush=True)


if __name__ == "__main__":
    main()
