"""The hub, with its HTTP faked: what is uploaded and fetched, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trimtab.guidance.errors import HeadError
from trimtab.guidance.publish import hub
from trimtab.guidance.publish.package import PATTERNS


def answer(kind: type[HfHubHTTPError], status: int, message: str = "said") -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} for url\nmore", response=response, server_message=message)


MISSING = answer(RepositoryNotFoundError, 404)


class FakeHub:
    """An HfApi with one repository. files: None where it is not there. fail: raised by the method named."""

    endpoint = "https://hub.test"

    def __init__(self, files: list[str] | None, *, private: bool = False, **fail: Exception) -> None:
        self.files, self.private, self.fail = files, private, fail
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def _record(self, name: str, **given: Any) -> None:
        self.calls.append((name, given))
        if name in self.fail:
            raise self.fail[name]

    def model_info(self, repo: str, **given: Any) -> Any:
        self._record("model_info", repo=repo, **given)
        if self.files is None:
            raise MISSING
        siblings = [SimpleNamespace(rfilename=name) for name in self.files]
        return SimpleNamespace(siblings=siblings, private=self.private, sha="c0ffee")

    def create_repo(self, repo: str, **given: Any) -> None:
        self._record("create_repo", repo=repo, **given)

    def upload_folder(self, **given: Any) -> None:
        self._record("upload_folder", **given)

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):
    def use(fake: FakeHub) -> FakeHub:
        monkeypatch.setattr(hub, "HfApi", lambda: fake)
        return fake

    return use


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("user/kind", True),
        ("kind", False),
        ("./user/kind", False),
        ("/user/kind", False),
        ("~/kind", False),
        ("a/b/c", False),
    ],
)
def test_what_means_a_repository(name: str, is_id: bool):
    assert hub.is_hub_id(name) is is_id


def test_a_folder_that_is_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "kind").mkdir(parents=True)
    assert not hub.is_hub_id("user/kind")


@pytest.mark.parametrize("files", [None, [".gitattributes"], ["README.md", "head.json", "notes.txt"]])
def test_a_head_goes_to_a_new_repository_or_one_that_holds_a_head(use, tmp_path: Path, files):
    fake = use(FakeHub(files, private=True))
    url = hub.push_to_hub(tmp_path, "user/kind", is_private=True, message="second try")
    assert url == "https://hub.test/user/kind"
    _, (_, made), (_, sent) = fake.calls
    assert made == {"repo": "user/kind", "private": True, "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"], sent["commit_message"]) == (
        "user/kind",
        tmp_path,
        "second try",
    )
    assert sent["allow_patterns"] == list(PATTERNS)


def test_a_repository_that_holds_something_else_is_left_alone(use, tmp_path: Path):
    fake = use(FakeHub(["config.json", "model.safetensors"]))
    with pytest.raises(HeadError, match="is no head: name another"):
        hub.push_to_hub(tmp_path, "user/llama")
    assert fake.names() == ["model_info"]


def test_a_private_head_never_goes_to_a_public_repository(use, tmp_path: Path):
    """The hub ignores `private` for a repository that is there."""
    fake = use(FakeHub(["head.json"], private=False))
    with pytest.raises(HeadError, match="is public on the hub"):
        hub.push_to_hub(tmp_path, "user/kind", is_private=True)
    assert "upload_folder" not in fake.names()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalTokenNotFoundError("no token"), "hf auth login"),
        (answer(HfHubHTTPError, 401), "hf auth login"),
        (answer(HfHubHTTPError, 403), "use a token with write access"),
        (answer(HfHubHTTPError, 500, "out of order"), r"answered 500 \(out of order\): try again"),
        (HFValidationError("bad"), "write it as user/name"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (hub.HTTPError("no route to host"), r"cannot be reached \(no route to host\)"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_goes_wrong_while_pushing_is_one_line(use, tmp_path: Path, error: Exception, says: str):
    use(FakeHub(None, create_repo=error))
    with pytest.raises(HeadError, match=says) as caught:
        hub.push_to_hub(tmp_path, "user/kind")
    assert "user/kind" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_a_head_consists_of_is_fetched_and_of_the_commit_that_was_looked_at(
    use, tmp_path: Path, monkeypatch
):
    fake = use(FakeHub(["head.json", "head.safetensors", "evil.py"]))
    given: dict[str, Any] = {}

    def download(repo: str, **arguments: Any) -> str:
        given.update(arguments, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.fetch_head("user/kind", "v2") == tmp_path
    assert fake.calls[0][1]["revision"] == "v2"
    assert given == {
        "repo": "user/kind",
        "revision": "c0ffee",
        "allow_patterns": list(PATTERNS),
        "local_files_only": False,
    }


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), hub.HTTPError("no route")])
def test_without_a_hub_what_was_fetched_before_serves(use, tmp_path: Path, monkeypatch, error):
    use(FakeHub(["head.json"], model_info=error))
    asked: list[bool] = []

    def download(repo: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.fetch_head("user/kind") == tmp_path
    assert asked == [True]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MISSING, "neither a folder here nor on the hub"),
        (answer(RevisionNotFoundError, 404), "no such revision"),
        (answer(GatedRepoError, 403), "ask its owner for access"),
        (answer(HfHubHTTPError, 429, "too many"), "answered 429"),
        (HFValidationError("bad"), "write it as user/name"),
    ],
)
def test_what_goes_wrong_while_fetching_is_one_line(use, error: Exception, says: str):
    use(FakeHub(["head.json"], model_info=error))
    with pytest.raises(HeadError, match=says) as caught:
        hub.fetch_head("user/kind")
    assert "\n" not in str(caught.value)


def test_without_a_hub_and_not_fetched_before_both_are_named(use, monkeypatch):
    use(FakeHub(None, model_info=OfflineModeIsEnabled("offline")))

    def download(repo: str, **_: Any) -> str:
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(HeadError, match=r"'runs/kind' is not a folder here, and the hub cannot be reached"):
        hub.fetch_head("runs/kind")


def test_a_repository_without_a_head_is_named_before_anything_is_fetched(use, monkeypatch):
    use(FakeHub(["config.json"]))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(HeadError, match=r"has no head\.json"):
        hub.fetch_head("user/llama")


def test_a_full_disk_while_fetching_is_told(use, monkeypatch):
    use(FakeHub(["head.json"]))

    def download(repo: str, **_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(HeadError, match="cannot be kept here"):
        hub.fetch_head("user/kind")
