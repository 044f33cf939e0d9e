"""GET /health: 200 when requests can be served, else 503 with the reason."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from trimtab.server.api.errors import RETRY_LATER
from trimtab.server.api.service import why_not_ready

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether requests can be served now."""
    reason = why_not_ready(request.app)
    if reason is not None:
        return JSONResponse({"status": "unavailable", "reason": reason}, 503, headers=RETRY_LATER)
    return JSONResponse({"status": "ready"})
