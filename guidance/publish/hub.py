"""Heads on the hub, through huggingface_hub: what can go wrong there, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined] # of HTTPError: which library's it is varies
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from trimtab.guidance.errors import HeadError, first_line
from trimtab.guidance.heads.manifest import MANIFEST_FILE
from trimtab.guidance.locate import HUB_TIMEOUT
from trimtab.guidance.publish.package import PATTERNS, PICTURES_FOLDER

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NEW_REPOSITORY = {".gitattributes", "README.md"}


def is_hub_id(name: str) -> bool:
    """Whether `name` means a repository, user/name, rather than a folder: one that is there is a folder, and
    so is what begins with . / or ~"""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not Path(name).exists()


def push_to_hub(folder: Path, repo: str, *, is_private: bool = False, message: str = "") -> str:
    """Uploads a gathered package, making the repository where there is none; returns its address.

    Raises:
        HeadError: one line that names the repository and the fix; nothing was uploaded.
    """
    api = HfApi()
    with _one_line(repo, "may not write there: use a token with write access"):
        _check_repository(api, repo, is_private)
        api.create_repo(repo, private=is_private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message or "Head of trimtab",
            allow_patterns=list(PATTERNS),
            delete_patterns=f"{PICTURES_FOLDER}/*.png",
        )
    return f"{api.endpoint}/{repo}"


def _check_repository(api: HfApi, repo: str, is_private: bool) -> None:
    """Raises HeadError where the repository holds something else, or is public where it is not to be."""
    try:
        info = api.model_info(repo, timeout=HUB_TIMEOUT)
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            raise
        return
    names = {sibling.rfilename for sibling in info.siblings or ()}
    if MANIFEST_FILE not in names and names - _NEW_REPOSITORY:
        raise HeadError(f"{repo} on the hub holds something that is no head: name another repository")
    if is_private and not info.private:
        raise HeadError(f"{repo} is public on the hub: make it private in its settings, or drop --private")


def fetch_head(repo: str, revision: str | None = None) -> Path:
    """A folder of this machine's cache with what a published head consists of; not yet verified. Where no hub
    can be reached, what was fetched before serves.

    Raises:
        HeadError: one line that names the repository and the fix.
    """
    with _one_line(repo, "may not read it: ask its owner for access"):
        commit, is_offline = _find(repo, revision)
        try:
            folder = snapshot_download(
                repo, revision=commit, allow_patterns=list(PATTERNS), local_files_only=is_offline
            )
        except LocalEntryNotFoundError:
            raise HeadError(
                f"head '{repo}' is not a folder here, and the hub cannot be reached: check the path or the "
                "connection, and that HF_HUB_OFFLINE is not set"
            ) from None
    return Path(folder)


def _find(repo: str, revision: str | None) -> tuple[str | None, bool]:
    """What to fetch, and whether from this machine's cache alone, which spares minutes of trying again."""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        raise
    except (OfflineModeIsEnabled, HTTPError):
        return revision, True
    if MANIFEST_FILE not in {sibling.rfilename for sibling in info.siblings or ()}:
        raise HeadError(f"{repo} on the hub is no head: it has no {MANIFEST_FILE}")
    return info.sha, False


@contextmanager
def _one_line(repo: str, forbidden: str) -> Iterator[None]:
    """What the hub says as a HeadError. forbidden: what the user may not do there."""
    try:
        yield
    except HFValidationError:
        raise HeadError(f"{repo!r} is no repository's name: write it as user/name") from None
    except LocalTokenNotFoundError:
        raise HeadError(f"{repo}: not logged in to the hub: {LOG_IN}") from None
    except RevisionNotFoundError:
        raise HeadError(
            f"{repo} on the hub has no such revision: see its list of branches and tags"
        ) from None
    except GatedRepoError:
        raise HeadError(f"{repo}: you {forbidden}, then {LOG_IN}") from None
    except RepositoryNotFoundError:
        raise HeadError(
            f"'{repo}' is neither a folder here nor on the hub: check the name, or, where it is private, "
            f"{LOG_IN}"
        ) from None
    except HfHubHTTPError as error:
        raise HeadError(f"{repo}: {_answer(error, forbidden)}") from None
    except (OfflineModeIsEnabled, HTTPError) as error:
        raise HeadError(
            f"{repo}: the hub cannot be reached ({first_line(error)}): check the connection, and that "
            "HF_HUB_OFFLINE is not set"
        ) from None
    except OSError as error:
        raise HeadError(f"{repo}: files cannot be kept here ({error.strerror or error})") from error


def _answer(error: HfHubHTTPError, forbidden: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"not logged in to the hub: {LOG_IN}"
    if status == 403:
        return f"you {forbidden}"
    return f"the hub answered {status} ({error.server_message or first_line(error)}): try again later"
