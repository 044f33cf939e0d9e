"""guidellm: loads our server as a peer of our own load client, from a virtual environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SECONDS = 300.0


def load(python: Path, url: str, model: Path, job: Mapping[str, Any]) -> Json:
    """The same numbers of streams, replies and tokens, over texts of its own.

    Raises SystemExit where it fails. model: the folder of the tokenizer that it makes its texts by.
    """
    num_prompt = len(job["prompts"][0])
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        options = {
            "backend": f"kind=openai_http,target={url},request_format=/v1/completions",
            "profile": f"kind=concurrent,streams={job['num_streams']}",
            "constraint": f"kind=max_requests,count={len(job['prompts'])}",
            "data": f"kind=synthetic_text,prompt_tokens={num_prompt},output_tokens={job['new_tokens']}",
            "data-loader": "kind=pytorch,prefetch_factor=2",
            "tokenizer": f"kind=huggingface_auto,model={model}",
            "output": f"kind=json,path={report}",
        }
        command = [str(python.with_name("guidellm")), "run", "--disable-console"]
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        ended = subprocess.run(
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if not report.is_file():
            raise SystemExit(f"guidellm ended with {ended.returncode}: {ended.stdout[-2000:]}")
        return figures(json.loads(report.read_text(encoding="utf-8")))


def figures(report: Json) -> Json:
    """As our client tells them. Its time between tokens is a mean of each reply, of which there is no p99."""
    [benchmark] = report["benchmarks"]
    metrics, seconds = benchmark["metrics"], benchmark["duration"]
    totals = metrics["request_totals"]
    first = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    num_tokens = round(metrics["output_token_count"]["successful"]["total_sum"])
    return {
        "replies": totals["total"],
        "errors": totals["total"] - totals["successful"],
        "tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "first_token_ms_p50": first["p50"],
        "first_token_ms_p99": first["p99"],
        "between_tokens_ms_p50": metrics["inter_token_latency_ms"]["successful"]["percentiles"]["p50"],
    }
