"""The OpenAPI schema says what is answered: replies match their models, and errors the one shape."""

from __future__ import annotations

import pytest

from trimtab.server.api.errors import ErrorReply
from trimtab.server.api.schemas.replies import (
    ChatReply,
    CompletionReply,
    DetokenizeReply,
    ScoreReply,
    TokenizeReply,
)
from trimtab.server.api.schemas.responses import ResponseReply

pytestmark = pytest.mark.anyio
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
MODELS = {
    "/v1/chat/completions": ChatReply,
    "/v1/completions": CompletionReply,
    "/v1/responses": ResponseReply,
    "/v1/score": ScoreReply,
    "/tokenize": TokenizeReply,
    "/detokenize": DetokenizeReply,
}
TRACED = {"guidance": {"trace": True, "heads": {"kind": 1}}}
BODIES = [
    ("/v1/chat/completions", {"messages": [USER]}),
    ("/v1/chat/completions", {"messages": [USER], "logprobs": True, "top_logprobs": 1, "n": 2, **TRACED}),
    (
        "/v1/chat/completions",
        {"messages": [USER], "prompt_logprobs": 1, "best_of": 2, "majority": {"pattern": "h"}},
    ),
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/completions", {"prompt": "ab", "echo": True, "logprobs": 1, "prompt_logprobs": 1, **TRACED}),
    ("/v1/responses", {"input": "hi", "instructions": "Be brief.", "max_output_tokens": 3, **TRACED}),
    ("/v1/score", {"messages": [USER, REPLY], **TRACED}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/detokenize", {"tokens": [64]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_reply_is_what_the_schema_says(client, path, body):
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    MODELS[path].model_validate(response.json(), strict=True)


async def test_the_schema_names_replies_and_errors_of_every_route(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    refs = {path: "#/components/schemas/" + model.__name__ for path, model in MODELS.items()}
    for path, ref in refs.items():
        answers = paths[path]["post"]["responses"]
        assert answers["200"]["content"]["application/json"]["schema"] == {"$ref": ref}
        for status in ("400", "404", "413", "429", "500", "503", "default"):
            schema = answers[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorReply"}
    assert "422" not in str(paths)
    streamed = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert "text/event-stream" in streamed


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/completions", {}, 400), ("/v1/completions", {"prompt": "a", "model": "b"}, 404), ("/no", {}, 404)],
)
async def test_an_error_is_what_the_schema_says(client, path, body, status):
    response = await client.post(path, json=body)
    assert response.status_code == status
    ErrorReply.model_validate(response.json(), strict=True)
