"""GET /v1/models: the one model that is served, with its heads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends

from trimtab.server.api.guidance_reply import Json
from trimtab.server.api.service import Service, ready_service

router = APIRouter()
ReadyService = Annotated[Service, Depends(ready_service)]


@router.get("/v1/models")
async def list_models(service: ReadyService) -> Json:
    """The served model, as a list of one."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/v1/models/{model:path}")
async def get_model(model: str, service: ReadyService) -> Json:
    """The served model; 404 for any other."""
    service.check_model(model)
    return _model(service)


def _model(service: Service) -> Json:
    info = service.info
    return {
        "id": info.model_name,
        "object": "model",
        "created": info.created,
        "owned_by": "trimtab",
        "max_model_len": info.max_model_len,
        "heads": [asdict(head) for head in info.heads],
        "default_head": service.config.default_head,
        "default_strength": service.config.default_strength,
    }
