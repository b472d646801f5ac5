"""Models by their name on the hub."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

MODELS = {
    "instruct-reference": "linyq/kiwi-edit-5b-instruct-reference-diffusers",
    "instruct": "linyq/kiwi-edit-5b-instruct-only-diffusers",
    "reference": "linyq/kiwi-edit-5b-reference-only-diffusers",
}
"""Published models by their short names."""
# Weights and settings; never code, never pickles.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(model: str | os.PathLike) -> bool:
    """Whether this is a short name or reads as ``owner/name``, and is no folder here."""
    return (str(model) in MODELS or bool(_NAME.fullmatch(str(model)))) and not Path(model).exists()


def folder_of(model: str | os.PathLike) -> Path:
    """The model's folder, downloaded if it is a name on the hub. Only weights and settings are fetched, no code.

    Raises OSError (FileNotFoundError, PermissionError, ConnectionError) if the download fails.
    """
    if not is_name(model):
        return Path(model)
    from huggingface_hub import constants, snapshot_download

    name = MODELS.get(str(model), str(model))
    try:
        return Path(snapshot_download(name, allow_patterns=[*PATTERNS]))
    except Exception as error:  # the hub's library raises many kinds
        reason = explain(error, name, "main", constants.ENDPOINT)
        raise type(reason)(f"{model} is no folder here. {reason}") from error


def explain(error: Exception, name: str, revision: str, endpoint: str) -> OSError:
    """What went wrong with a model on the hub, in one sentence that says what to do."""
    from huggingface_hub import errors

    if getattr(error, "filename", None):  # not of the network
        return error
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = f"{type(error).__name__}{f', {status}' if status else ''}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return OSError("The disk is full; make room and start again, what has arrived is kept.")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return PermissionError(
            f"{name} needs a permission ({kind}): ask for it on its page at {endpoint}, then set "
            "HF_TOKEN to a token of your account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name} has no revision {revision}; use main, a tag or a commit.")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError)):
        return FileNotFoundError(
            f"{name} is not at {endpoint}, or not for everyone ({kind}); check the name, or set HF_TOKEN "
            "to a token that may read it."
        )
    if status == 401:
        return PermissionError(f"{endpoint} does not accept the token in HF_TOKEN ({kind}); use another.")
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(f"{endpoint} lacks a file that it lists ({kind}); start again later.")
    if status:
        return OSError(f"{endpoint} has a problem ({kind}); start again later, what has arrived is kept.")
    return ConnectionError(
        f"{endpoint} cannot be reached ({kind}); check the connection and start again, what has arrived is kept."
    )
