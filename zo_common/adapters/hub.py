"""Adapters on the Hugging Face hub: upload, download and lookup by id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zo_common.adapters.description import FILES
from zo_common.errors import LedgerError, NetworkError, first_line
from zo_common.ledger.file import LEDGER_NAME
from zo_common.models.hub import hub_or_cache, is_hub_id


def push(folder: Path, repository: str, *, private: bool = False, message: str = "Publish an adapter") -> str:
    """Create a model repository, or use the present one, and upload a folder as one commit.

    Returns:
        The address of the commit.

    Raises:
        NetworkError: the hub does not answer, or refuses the token or the request.
    """
    with _hub_errors(repository, "log in with 'hf auth login', and check the name"):
        api = _api()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(done.commit_url)


def pull(repository: str, folder: Path | None = None, revision: str | None = None) -> Path:
    """Download an adapter's files, without other files of the repository.

    Args:
        folder: target; None for the hub's cache.
        revision: a branch, tag or commit; None for the newest.

    Raises:
        LedgerError: there is no such repository or revision, here or on the hub.
    """
    with (
        _hub_errors(repository, "check the name, or your token where it is private", LedgerError),
        hub_or_cache(repository),
    ):
        found = _api().snapshot_download(
            repository, revision=revision, local_dir=folder, allow_patterns=list(FILES), max_workers=2
        )
    return Path(found)


def fetch_ledger(repository: str) -> Path:
    """Return the path of an adapter's ledger, downloaded to the hub's cache; raises as `pull`."""
    with _hub_errors(repository, "check the path or the hub id", LedgerError), hub_or_cache(repository):
        return Path(_api().hf_hub_download(repository, LEDGER_NAME))


def known_revision(model: str) -> str:
    """Return the commit of a model in the hub's cache; "" if there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json") if is_hub_id(model) else None
    return Path(found).parent.name if isinstance(found, str) else ""


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="federated-zo-asr")


@contextmanager
def _hub_errors(repository: str, remedy: str, kind: type[NetworkError | LedgerError] = NetworkError) -> Iterator[None]:
    """Convert errors of the hub's client to one sentence, and hide its progress bars, as the files are small."""
    import httpx
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    drawn = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except EntryNotFoundError:
        raise kind(f"{repository!r} on the hub, or in its cache here, holds no {LEDGER_NAME}: {remedy}") from None
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        reason = first_line(error)[:200]
        raise kind(f"{repository!r} is neither here nor can be used on the hub ({reason}): {remedy}") from None
    finally:
        if drawn:
            enable_progress_bars()
