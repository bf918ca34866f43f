"""Where checkpoints lie: a local folder, or the Hugging Face hub through huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError

PATTERNS = ("*.json", "*.safetensors", "*.model", "README.md")


def local_folder(path_or_hub_id: str | Path) -> Path:
    """The folder itself, or that of the hub's repository, downloaded where it is not at hand yet.

    Raises CheckpointError for a folder that does not exist and for a repository that cannot be had.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists():
        raise CheckpointError(f"{name}: is a file, expected a folder that holds a checkpoint")
    if isinstance(path_or_hub_id, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name}: no such folder; expected one, or a hub id such as kyutai/moshiko-mlx-q4")
    from huggingface_hub import snapshot_download

    return Path(_fetch(name, snapshot_download, repo_id=name, allow_patterns=list(PATTERNS)))


def local_file(folder: Path, name: str) -> Path:
    """A file of the folder, or, as Kyutai's configs may say, one of another repository: hf://OWNER/REPO/FILE."""
    if not name.startswith("hf://"):
        return folder / name
    owner, repo, *rest = name.removeprefix("hf://").split("/")
    from huggingface_hub import hf_hub_download

    return Path(_fetch(name, hf_hub_download, repo_id=f"{owner}/{repo}", filename="/".join(rest)))


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a repository of the hub, made where it does not exist; its address. Raises CheckpointError."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), repo_type="model")
    except Exception as error:  # as in _fetch
        raise CheckpointError(f"{repo}: cannot upload ({_reason(error)}); what was written is in {folder}") from error
    return f"https://huggingface.co/{repo}"


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _fetch(name: str, download: Any, **arguments: Any) -> str:
    """A download with any failure of hub or network as one line."""
    try:
        return str(download(**arguments))
    except Exception as error:  # whatever the hub's client and its transport raise: OSError, ValueError, their own
        raise CheckpointError(
            f"{name}: neither a local folder nor to be had from the hub ({_reason(error)}); check the name and the "
            "network, or give the path of a folder that holds the checkpoint"
        ) from error
