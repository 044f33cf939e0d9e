"""Reader of given tokens: has the engine read them while somebody waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request as HttpRequest

from trimtab.server.api.errors import naming
from trimtab.server.api.generation import Usage
from trimtab.server.api.readings.prompts import PromptReading
from trimtab.server.api.schemas.generation import GenerationRequest
from trimtab.server.api.service import Service
from trimtab.server.api.streaming import gather_while_connected
from trimtab.server.engine.request import Guidance, Request, reading_of


async def read_prompts(
    http: HttpRequest,
    service: Service,
    body: GenerationRequest,
    name: str,
    prompts: Sequence[PromptReading],
    guidance: Guidance,
    num_top: int,
    field: str = "prompt_logprobs",
) -> tuple[list[PromptReading], Usage]:
    """The prompts with their log-probabilities, and what was computed for them. field: that asks for num_top.

    Raises InvalidRequestError like the engine, ClientDisconnect when nobody waits for them any more.
    """
    with naming({"logprobs": field}.get):
        requests: list[Request] = [
            reading_of(
                f"{name}-prompt-{i}",
                prompt.token_ids[:1],
                prompt.token_ids[1:],
                logprobs=num_top,
                guidance=replace(guidance, trace=False),
            )
            for i, prompt in enumerate(prompts)
            if len(prompt.token_ids) > 1
        ]
    if not requests:
        return list(prompts), Usage()
    with await service.generation(http, requests, cache_salt=body.cache_salt) as generation:
        readings = iter(await gather_while_connected(http, generation))
    found = [
        replace(prompt, reading=next(readings)) if len(prompt.token_ids) > 1 else prompt for prompt in prompts
    ]
    return found, generation.usage
