"""Heads loaded and unloaded over HTTP: by admins, from the operator's folder, and whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.models.profiles import read_profiles

LOAD, UNLOAD, CHAT = "/v1/load_head", "/v1/unload_head", "/v1/chat/completions"
USER = {"role": "user", "content": "hello"}
ADMIN, CLIENT, NOBODY = ({"Authorization": f"Bearer {name}-has-a-key"} for name in ("admin", "ana", "nobody"))


@pytest.fixture
def access(tmp_path: Path) -> AccessConfig:
    (tmp_path / "keys").write_text("ana:ana-has-a-key\n")
    (tmp_path / "admins").write_text("root:admin-has-a-key\n")
    for folder in ("heads/new", "heads/team/other", "elsewhere/secret"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "head.json").write_text("{}")
    os.symlink(tmp_path / "elsewhere/secret", tmp_path / "heads/linked")
    (tmp_path / "heads/mixed").mkdir()
    os.symlink(tmp_path / "elsewhere/secret/head.json", tmp_path / "heads/mixed/head.json")
    os.symlink("loop", tmp_path / "heads/loop")
    return AccessConfig(tmp_path / "keys", tmp_path / "admins", tmp_path / "heads")


@pytest.fixture
async def admin(make_client, make_engine, access):
    steered, measured = {"heads": {"brief": 1}}, {"strength": 0, "heads": {"meter": 1}}
    profiles = read_profiles({"brief": steered, "held": measured})
    config = ApiConfig(default_head="kind", access=access, profiles=profiles)
    engine = make_engine("kind", "brief", "meter")
    async with make_client(engine, config) as client:
        yield client


async def names(client: httpx.AsyncClient) -> list[str]:
    served = await client.get("/v1/models/echo", headers=CLIENT)
    return [head["name"] for head in served.json()["heads"]]


@pytest.mark.anyio
async def test_a_head_is_there_from_its_loading_to_its_unloading(admin):
    steered = {"messages": [USER], "guidance": {"heads": {"fresh": 1}}}
    assert (await admin.post(CHAT, json=steered, headers=CLIENT)).status_code == 400
    for path in ("new", "team/other"):
        done = await admin.post(LOAD, json={"name": "fresh", "path": path}, headers=ADMIN)
        assert (done.status_code, done.json()["heads"][-1]) == (200, "fresh")
        assert (await admin.post(CHAT, json=steered, headers=CLIENT)).status_code == 200
        assert (await names(admin))[-1] == "fresh"
        assert 'head="fresh"' in (await admin.get("/metrics")).text
        done = await admin.post(UNLOAD, json={"name": "fresh"}, headers=ADMIN)
        assert (done.status_code, done.json()["heads"]) == (200, ["kind", "brief", "meter"])
        assert 'head="fresh"' not in (await admin.get("/metrics")).text
        refused = await admin.post(CHAT, json=steered, headers=CLIENT)
        assert refused.json()["error"]["param"] == "guidance.heads.fresh"
    assert await names(admin) == ["kind", "brief", "meter"]


@pytest.mark.anyio
@pytest.mark.parametrize(("headers", "status"), [({}, 401), (NOBODY, 401), (CLIENT, 403)])
async def test_only_an_admin_changes_heads_and_an_admin_is_no_client(admin, headers, status: int):
    for path, body in ((LOAD, {"name": "x", "path": "new"}), (UNLOAD, {"name": "meter"})):
        refused = await admin.post(path, json=body, headers=headers)
        assert refused.status_code == status, refused.text
    assert (await admin.post(CHAT, json={"messages": [USER]}, headers=ADMIN)).status_code == 401
    assert await names(admin) == ["kind", "brief", "meter"]


@pytest.mark.anyio
async def test_a_server_without_admins_has_no_such_door(make_client, engine):
    async with make_client(engine) as client:
        for headers in ({}, ADMIN):
            refused = await client.post(LOAD, json={"name": "x", "path": "new"}, headers=headers)
            assert refused.status_code == 404
            assert "start it with --admin-keys and --heads-dir" in refused.json()["error"]["message"]


BAD_PATHS = [
    "..",
    "../elsewhere/secret",
    "new/../../elsewhere/secret",
    "linked",
    "mixed",
    "loop",
    ".",
    "",
    "~",
]
BAD_PATHS += ["new/head.json", "new\0", "file:///etc", "https://example.org/head", "/etc", "gone", "x" * 5000]
BAD_PATHS += ["\ud800"]


@pytest.mark.anyio
@pytest.mark.parametrize("path", BAD_PATHS)
async def test_nothing_is_read_beside_the_operators_folder(admin, path: str):
    body = b'{"name": "x", "path": "\\ud800"}' if path == "\ud800" else None
    sent = {"content": body} if body else {"json": {"name": "x", "path": path}}
    refused = await admin.post(LOAD, headers=ADMIN | {"Content-Type": "application/json"}, **sent)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "path")
    assert await names(admin) == ["kind", "brief", "meter"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (LOAD, {"name": "kind", "path": "new"}, 409, "loaded already"),
        (UNLOAD, {"name": "gone"}, 404, "there is kind, brief, meter"),
        (UNLOAD, {"name": "kind"}, 409, "the server's default head"),
        (UNLOAD, {"name": "brief"}, 409, "profile 'brief'"),
        (UNLOAD, {"name": "meter"}, 409, "profile 'held'"),
        (LOAD, {"name": "x"}, 400, "path: is required"),
        (UNLOAD, {"nam": "x"}, 400, "did you mean name?"),
    ],
)
async def test_what_cannot_be_is_told_in_a_line(admin, path: str, body: dict, status: int, says: str):
    refused = await admin.post(path, json=body, headers=ADMIN)
    assert refused.status_code == status
    assert says in refused.json()["error"]["message"]
    assert await names(admin) == ["kind", "brief", "meter"]
