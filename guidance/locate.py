"""Locates a model: a folder, or a hub id that the hub or the local cache knows."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from trimtab.guidance.errors import PolicyError

HUB_TIMEOUT = 5.0


def must_be_local(path: str | Path) -> bool:
    """Whether to load `path` from this machine's files alone: it is a folder, or no hub can be reached.

    Asking the hub once, with a timeout, spares a user the minutes that loaders spend on trying again.

    Raises:
        PolicyError: it is neither a folder nor a hub id, or the hub knows no such model.
    """
    name = str(path)
    if Path(path).exists():
        return True
    if isinstance(path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise PolicyError(f"model '{name}' is not a folder here; name a folder that holds config.json")
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except (RepositoryNotFoundError, HFValidationError):
        raise PolicyError(
            f"model '{name}' is neither a folder here nor on the hub; check the name, or log in to the hub"
        ) from None
    except Exception:  # offline mode, no name service, a proxy, a time-out: all mean that there is no hub
        return True
    return False
