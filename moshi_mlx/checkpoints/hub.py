"""Where checkpoints lie: a local folder, or the Hugging Face hub through huggingface_hub.

Of a repository only the files that loading needs are fetched, and where they lie in the hub's cache the network is
not missed: a cache without the model card, or of which another program keeps the list, is as good.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, ConfigError, InputError, MoshiError, brief, clipped
from .disk.files import inside, read_json
from .names import CONFIG_NAME, INDEX_NAME, MINIATURE, MINIATURE_FOLDER, SMALL, needed, needed_of_adapter

TIMEOUT = 10.0  # seconds, for the list of a repository's files
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
Only = str | None
"""What is wanted of a repository: "config", "adapter", or None for all that a checkpoint is loaded from."""


class Sizes(NamedTuple):
    """Bytes of the files of a repository that loading needs, and of those not in the cache yet."""

    total: int
    missing: int


def local_folder(
    path_or_hub_id: str | Path, revision: str | None = None, only: Only = None, more: Collection[str] = ()
) -> Path:
    """The folder itself, that of "miniature", or that of the hub's repository, downloaded where it is not at hand yet.

    `revision` is a branch, tag or commit of the repository. `only` "config" fetches what says the sizes, "adapter"
    an adapter; `more` are names of small files that are fetched too where they exist. Raises CheckpointError for a
    folder that does not exist or cannot be read, and for a repository that cannot be had.
    """
    if not isinstance(path_or_hub_id, (str, os.PathLike)):
        raise InputError(f"path_or_hub_id: got {brief(path_or_hub_id)}, expected a path or a hub id")
    name = os.fspath(path_or_hub_id)
    path = named_folder(path_or_hub_id)
    if name and os.path.isdir(path):
        return _listed(path)
    if name and os.path.lexists(path):
        raise CheckpointError(f"{name}: is a file, expected a folder that holds a checkpoint")
    if not is_hub_id(path_or_hub_id):
        raise CheckpointError(
            f'{clipped(name) or brief(name)}: no such folder; expected one, "miniature", or a hub id such as '
            "kyutai/moshiko-mlx-q4"
        )
    return _download(name, revision, only, more)


def named_folder(name: str | os.PathLike[str]) -> Path:
    """Where a folder of that name is, or would be: the miniature is in the package."""
    return MINIATURE_FOLDER if name == MINIATURE else _expanded(os.fspath(name))


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name that is no folder can be a repository's."""
    text = os.fspath(name)
    good = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")
    return not isinstance(name, Path) and good and text.isprintable()


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~somebody
        raise CheckpointError(f"{clipped(name)}: no such folder; {error}") from error


def _listed(folder: Path) -> Path:
    """The folder, whose files can be looked at."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        os.stat(folder / CONFIG_NAME)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    return folder


def local_file(folder: Path, name: str, where: str = "") -> Path:
    """A file of the folder, or, as Kyutai's configs may say, one of elsewhere: hf://OWNER/REPO/FILE, file:///PATH.

    `where` names the config that says so. Raises ConfigError for a name that leaves the folder, CheckpointError for
    what cannot be had.
    """
    where = where or str(folder)
    if name.startswith("file://"):
        path = Path(name.removeprefix("file://"))
        if not path.is_absolute() or "\0" in name:
            raise ConfigError(f"{where}: names the file {brief(name)}, expected file:///PATH")
        return path
    if not name.startswith("hf://"):
        return inside(folder, name, where, ConfigError)
    parts = name.removeprefix("hf://").split("/")
    if len(parts) < 3 or not all(parts):
        raise ConfigError(f"{where}: names the file {brief(name)}, expected hf://OWNER/REPO/FILE")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    from huggingface_hub import hf_hub_download

    return Path(_fetch(name, lambda: hf_hub_download(repo_id=repo, filename=file), "file"))


def cached_file(repo: str, name: str) -> Path | None:
    """A file of a repository, where the hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name) if is_hub_id(repo) else None
    return Path(found) if isinstance(found, str) else None


def files_in(repo: str) -> list[str]:
    """All files of a repository; where the hub cannot be asked, those in its cache. Raises CheckpointError."""
    try:
        return sorted(_listing(repo, None)[0])
    except Exception as error:  # as in _fetch
        there = [str(path.relative_to(folder)) for folder in _snapshots(repo, None) for path in folder.rglob("*.*")]
        if there:
            return sorted(set(there))
        raise CheckpointError(_explained(repo, error, sought="file")) from error


def sizes(name: str, revision: str | None = None) -> Sizes | None:
    """Of a repository's files that loading needs; None where nothing can be said of it before it is loaded."""
    from huggingface_hub import try_to_load_from_cache

    try:
        listed, commit = _listing(name, revision)
        small = [file for file in SMALL if file in listed]
        folder = _snapshot(name, small, revision) if small else None
    except Exception:  # no network, no such repository: loading says it
        return None
    files = {*small, *_wanted(listed, folder, None)} & listed.keys()
    missing = [file for file in files if not isinstance(try_to_load_from_cache(name, file, revision=commit), str)]
    return Sizes(sum(listed[file] for file in files), sum(listed[file] for file in missing))


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that loading reads."""
    listed = [path.name for path in folder.iterdir() if path.is_file()]
    return [folder / name for name in dict.fromkeys((*SMALL, *_wanted(listed, folder, None))) if name in listed]


def cached(name: str, revision: str | None = None, only: Only = None) -> Path | None:
    """The folder of a repository in the hub's cache, where all that loading needs of it is there."""
    for folder in _snapshots(name, revision):
        listed = {str(path.relative_to(folder)): 0 for path in folder.rglob("*") if path.is_file()}
        try:
            wanted = _wanted(listed, folder, only)
        except MoshiError:
            continue
        if all(file in listed for file in wanted) and (wanted or only == "config"):
            return folder
    return None


def be_quiet() -> None:
    """No bars and no words of the hub's client; errors are still raised."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()


def check_login(repo: str) -> None:
    """Raises InputError where nobody is logged in who could upload to a repository, or its name cannot be one."""
    from huggingface_hub import HfApi, get_token

    if not is_hub_id(repo):
        raise InputError(f"--upload-repo: got {brief(repo)}, expected OWNER/NAME")
    if not get_token():
        raise InputError(f"--upload-repo: nobody is logged in to the hub; {LOG_IN}")
    try:
        HfApi().whoami()
    except Exception as error:  # as in _fetch
        said = _reason(error)
        raise InputError(f"--upload-repo: {repo}: the hub does not say who is logged in ({said}); {LOG_IN}") from error


def upload(folder: Path, repo: str) -> str:
    """Upload a folder to a repository of the hub, made where it does not exist; its address. Raises CheckpointError."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), repo_type="model")
    except Exception as error:  # as in _fetch
        raise CheckpointError(
            f"{repo}: cannot upload ({_reason(error)}); what was written is in {folder}: upload it with "
            f"`hf upload {repo} {folder}`"
        ) from error
    return f"https://huggingface.co/{repo}"


# --- one repository -------------------------------------------------------------------------------------------------


def _download(name: str, revision: str | None, only: Only, more: Collection[str]) -> Path:
    try:
        listed, commit = _listing(name, revision)
    except Exception as error:  # whatever the hub's client and its transport raise: OSError, ValueError, their own
        folder = cached(name, revision, only)
        if folder is None:
            raise CheckpointError(_explained(name, error, revision)) from error
        return folder
    small = [file for file in (*SMALL, *more) if file in listed]
    folder = Path(_fetch(name, lambda: _snapshot(name, small, revision))) if small else None
    only = None if only == "config" and folder is None else only  # then the weights alone say the sizes
    wanted = _wanted(listed, folder, only)
    absent = [file for file in wanted if file not in listed]
    if absent or not (wanted or only == "config"):
        what = f"{clipped(absent[0])}, which its {CONFIG_NAME} names" if absent else "file that Moshi is loaded from"
        raise CheckpointError(f"{name}: this repository of the hub has no {what}; is it another model's?")
    return Path(_fetch(name, lambda: _snapshot(name, wanted, commit))) if wanted else folder  # type: ignore[return-value]


def _listing(name: str, revision: str | None) -> tuple[dict[str, int], str | None]:
    """Bytes of every file of a repository, and the commit that the revision is now."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT)
    return {file.rfilename: file.size or 0 for file in info.siblings or []}, getattr(info, "sha", None) or revision


def _snapshot(name: str, files: Collection[str], revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [file.translate({ord(c): f"[{c}]" for c in "[*?"}) for file in files]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def _wanted(listed: Collection[str], folder: Path | None, only: Only) -> list[str]:
    """The files to fetch besides the small ones, some of which `folder` holds by now."""
    values = _content(folder, CONFIG_NAME)
    if only == "adapter":
        return needed_of_adapter(listed)
    named = values.get("mimi_config_name")
    if only == "config":
        return [named] if isinstance(named, str) and "://" not in named else []
    shards = _content(folder, INDEX_NAME).get("weight_map")
    files = shards.values() if isinstance(shards, dict) else ()
    return needed(listed, values, list(dict.fromkeys(file for file in files if isinstance(file, str))))


def _content(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder / name if folder else None
    return read_json(path) if path and path.is_file() else {}


def _snapshots(name: str, revision: str | None) -> Iterator[Path]:
    """The folders in the hub's cache that may be the repository at this revision, the likeliest first."""
    from huggingface_hub import constants

    repo = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    refs, commits = repo / "refs" / (revision or constants.DEFAULT_REVISION), repo / "snapshots"
    try:
        said = refs.read_text().strip() if refs.is_file() else revision
        named = [commits / said] if said else []
        others = sorted(commits.iterdir(), key=lambda path: -path.stat().st_mtime) if commits.is_dir() else []
    except OSError:
        return
    yield from (folder for folder in named if folder.is_dir())
    if not said:  # a cache that somebody copied without its list of branches
        yield from (folder for folder in others if folder.is_dir())


# --- what went wrong ------------------------------------------------------------------------------------------------


def _fetch(name: str, download: Callable[[], Any], sought: str = "folder") -> Any:
    """A download with any failure of hub or network as one line."""
    try:
        return download()
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{name}: not all of it has come; what has is kept for the next time") from error
    except Exception as error:  # whatever the hub's client and its transport raise: OSError, ValueError, their own
        raise CheckpointError(_explained(name, error, sought=sought)) from error


def _explained(name: str, error: BaseException, revision: str | None = None, sought: str = "folder") -> str:
    """What the hub's answer, or that there is none, means for whoever asked, and what to do about it."""
    from huggingface_hub import errors, get_token

    causes = list(_causes(error))

    def any_of(*kinds: Any) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    status = next((cause.response.status_code for cause in causes if isinstance(cause, errors.HfHubHTTPError)), 0)
    page = f"https://huggingface.co/{name.removeprefix('hf://')}"
    if any_of(errors.GatedRepoError):
        then = "with the account that you are logged in with" if get_token() else f"then {LOG_IN}"
        return f"{name}: is gated: ask for access at {page}, {then}"
    if any_of(errors.RevisionNotFoundError):
        return f"{name}: the hub's repository has no revision {brief(revision)}"
    if any_of(errors.RemoteEntryNotFoundError):
        return f"{name}: no such file in that repository of the hub"
    if any_of(errors.RepositoryNotFoundError):
        return (
            f"{name}: no such {sought}, and no such repository on the hub; check the name; of a private one, {LOG_IN}"
        )
    if any_of(errors.HFValidationError):
        return f"{name}: no such {sought}, and no name that a repository of the hub can have"
    if status in (401, 403):
        return f"{name}: the hub refuses your token ({_reason(error)}); {LOG_IN}, one that may read it"
    if status:
        return f"{name}: the hub answers with an error ({_reason(error)}); try again later"
    folder = (
        "or give the path of a file" if sought == "file" else "or give the path of a folder that holds the checkpoint"
    )
    if any_of(errors.OfflineModeIsEnabled):
        return (
            f"{name}: no such {sought}, and not all in the hub's cache; unset HF_HUB_OFFLINE to download it, {folder}"
        )
    if getattr(error, "errno", None):
        return f"{name}: cannot be written to the hub's cache: {getattr(error, 'strerror', None) or error}"
    return (
        f"{name}: no such {sought}, and the hub cannot be reached ({_reason(causes[-1])}); check the network and try "
        f"again, which goes on with what has come, {folder}"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return clipped(lines[0], 150) if lines else type(error).__name__
