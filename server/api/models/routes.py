"""Routes of models: answer GET /v1/models, with a profile as a model of its own."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from trimtab.server.api.errors import ERROR_REPLIES
from trimtab.server.api.models.profiles import find_model
from trimtab.server.api.replies import Json
from trimtab.server.api.schemas.replies import ModelReply, ModelsReply, answers
from trimtab.server.api.service import ReadyService, Service
from trimtab.server.api.strict_json import StrictJsonRoute

router = APIRouter(route_class=StrictJsonRoute, responses=ERROR_REPLIES)


@router.get("/v1/models", response_model=None, responses=answers(ModelsReply))
async def list_models(service: ReadyService) -> Json:
    """The served model and its profiles."""
    return {"object": "list", "data": [_model(service, name) for name in service.model_ids]}


@router.get("/v1/models/{model:path}", response_model=None, responses=answers(ModelReply))
async def get_model(model: str, service: ReadyService) -> Json:
    """One of them; 404 for any other."""
    find_model(model, service.model_ids)
    return _model(service, model)


def _model(service: Service, name: str) -> Json:
    info, profile = service.info, service.model_ids[name]
    return {
        "id": name,
        "object": "model",
        "created": info.created,
        "owned_by": "trimtab",
        "root": info.model_name,
        "max_model_len": info.max_model_len,
        "heads": [asdict(head) for head in info.heads],
        "experts": [asdict(expert) for expert in info.experts],
        "default_head": service.config.default_head,
        "default_strength": service.config.default_strength,
        "guidance": None if profile is None else profile.model_dump(exclude_none=True),
    }
