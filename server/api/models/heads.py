"""Heads of a running server: answers POST /v1/load_head and /v1/unload_head, for whoever has an admin key."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest

from trimtab.guidance.errors import HeadError
from trimtab.server.api.errors import (
    ERROR_REPLIES,
    HeadConflictError,
    HeadNotFoundError,
    NoAdminsError,
    NotAdminError,
)
from trimtab.server.api.replies import Json
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText
from trimtab.server.api.service import ReadyService, Service
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.engine.request import InvalidRequestError

Name = Annotated[UnicodeText, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class LoadHeadRequest(StrictModel):
    """name: what requests will call it. path: its folder, below the server's --heads-dir."""

    name: Name
    path: Annotated[UnicodeText, Field(min_length=1, max_length=4096)]


class UnloadHeadRequest(StrictModel):
    """name: of a head that is loaded."""

    name: Name


def admit_admins(http: HttpRequest) -> None:
    """Raises NotAdminError for anybody else, and NoAdminsError where there are none."""
    if not http.app.state.has_admins:
        raise NoAdminsError(
            "this server loads no heads while it runs; start it with --admin-keys and --heads-dir"
        )
    if not getattr(http.state, "is_admin", False):
        raise NotAdminError("this takes an admin key: send the header Authorization: Bearer KEY")


router = APIRouter(route_class=StrictJsonRoute, responses=ERROR_REPLIES, dependencies=[Depends(admit_admins)])


@router.post("/v1/load_head")
async def load_head(body: LoadHeadRequest, http: HttpRequest, service: ReadyService) -> Json:
    """Reads a head, and lets requests ask for it once all of it has been checked. Those under way go on as
    they were."""
    folder = find_folder(service.config.access.heads_dir, body.path)
    if body.name in {head.name for head in service.info.heads}:
        what = f"name: a head {body.name!r} is loaded already; unload it, or choose another"
        raise HeadConflictError(what)
    return await asyncio.shield(_load(http, service, folder, body.name))


async def _load(http: HttpRequest, service: Service, folder: Path, name: str) -> Json:
    """To its end, whoever waits for it."""
    try:
        await service.engine.load_head(folder, name)
    except HeadError as error:
        raise InvalidRequestError(str(error), "path") from error
    changed = _refresh(http)
    changed.head_rows.put(next(head for head in changed.info.heads if head.name == name))
    changed.metrics.offer(name)
    return _told(changed)


@router.post("/v1/unload_head")
async def unload_head(body: UnloadHeadRequest, http: HttpRequest, service: ReadyService) -> Json:
    """No further request can ask for the head. Those that have go on with it."""
    name = body.name
    if name not in (loaded := [head.name for head in service.info.heads]):
        raise HeadNotFoundError(f"name: no head {name!r} is loaded; there is {', '.join(loaded) or 'none'}")
    check_is_free(service, name)
    return await asyncio.shield(_unload(http, service, name))


async def _unload(http: HttpRequest, service: Service, name: str) -> Json:
    """To its end, whoever waits for it."""
    try:
        await service.engine.unload_head(name)
    except HeadError as error:  # somebody else has been quicker
        raise HeadNotFoundError(str(error)) from error
    changed = _refresh(http)
    changed.metrics.withdraw(name)
    return _told(changed)


def check_is_free(service: Service, name: str) -> None:
    """Raises HeadConflictError where requests that do not name the head are steered by it."""
    config = service.config
    if name == config.default_head:
        raise HeadConflictError(f"name: {name!r} is the server's default head; it stays while that runs")
    for profile, fields in config.profiles.items():
        controlled = None if fields.target is None else fields.target.head
        if name in (fields.heads or {}) or name == controlled:
            raise HeadConflictError(f"name: profile {profile!r} is steered by {name!r}; it stays")


def find_folder(root: Path | None, path: str) -> Path:
    """The folder of that name below `root`, with all that is in it; whatever else the path leads to, by `..`
    or by links, is as if it were not there. Raises InvalidRequestError."""
    what = "is no head's folder below the server's --heads-dir"
    if root is None:
        raise InvalidRequestError("no head may be loaded; start the server with --heads-dir FOLDER", "path")
    try:
        home = root.resolve(strict=True)
        folder = (home / path).resolve(strict=True)
        files = [file.resolve(strict=True) for file in folder.iterdir()]
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # absent, a null byte, a loop of links
        raise InvalidRequestError(what, "path") from error
    if folder == home or not all(each.is_relative_to(home) for each in (folder, *files)):
        raise InvalidRequestError(what, "path")
    return folder


def _refresh(http: HttpRequest) -> Service:
    """What later requests are served by, with the heads that there are now."""
    service: Service = http.app.state.service
    http.app.state.service = changed = replace(service, info=service.engine.info)
    return changed


def _told(service: Service) -> Json:
    return {"object": "heads", "heads": [head.name for head in service.info.heads]}
