"""The data that lm-evaluation-harness's tasks download: which it is, and where to place it without network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.errors import UserError

Data = tuple[str, str | None]  # a data set of huggingface.co, as owner/name, and its configuration
_PROBE_SECONDS = 5.0


def data_of(index: dict[str, Any], names: Sequence[str]) -> list[Data]:
    """What the tasks load from huggingface.co, groups and tags followed down to their tasks.

    index: TaskManager.task_index. A task that is given by its file, or loads its data by itself, adds nothing; nor
    does one whose data is here: a local file, or the folder owner/name where the command runs.
    """
    found: dict[Data, None] = {}
    seen = set()

    def visit(name: str, inherited: dict[str, Any]) -> None:
        if name not in index or name in seen:
            return
        seen.add(name)
        config = {**(index[name].cfg or {}), **inherited}
        for tagged in sorted(index[name].tags) if index[name].cfg is None else ():
            visit(tagged, inherited)
        children = config.get("task")
        for child in children if isinstance(children, list) else ():
            own = child if isinstance(child, dict) else {}
            visit(str(own.get("task") or own.get("group")) if own else str(child), {})
        path = config.get("dataset_path")
        if not path or "custom_dataset" in config or "/" not in str(path) or Path(path).exists():
            return
        found[str(path), config.get("dataset_name")] = None

    for name in names:
        visit(name, {})
    return list(found)


@contextmanager
def offline_if_unreachable(data: Sequence[Data]) -> Iterator[None]:
    """Within it, data that is neither here nor reachable fails at once instead of after a minute of retries.

    huggingface.co is asked once, if `data` needs it and its libraries are not told to stay offline already.
    """
    import datasets
    import huggingface_hub.constants as hub

    if not data or hub.HF_HUB_OFFLINE or _is_reachable():
        yield
        return
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def unreachable(names: Sequence[str], data: Sequence[Data], error: Exception) -> Exception:
    """A UserError that names the data to place where, if a task's data could not be loaded; else the error itself."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    words = " ".join(f"{type(one).__name__} {one}" for one in chain)
    signs = ("ConnectionError", "LocalEntryNotFound", "DatasetNotFound", "Offline", "ConnectError", "Max retries")
    if not any(sign in words for sign in signs):
        return error
    reason = " ".join(str(error).split())[:200]
    which = ", ".join(path if name is None else f"{path} (its configuration {name})" for path, name in data)
    paths = list(dict.fromkeys(path for path, _ in data)) or ["OWNER/NAME"]
    commands = "; ".join(f"hf download --repo-type dataset {path} --local-dir {path}" for path in paths)
    return UserError(
        f"tasks: {', '.join(names)} needs the data set {which or 'that dataset_path in its YAML file names'} of "
        f"huggingface.co, and it cannot be downloaded ({type(error).__name__}: {reason}). On a machine with network "
        f"run `{commands}`, copy the folder to {', '.join(str(Path.cwd() / path) for path in paths)}, and run this "
        "command where it is now; or give local data with dataset=FILE.jsonl."
    )


def _is_reachable() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except Exception:  # of whichever HTTP library it uses
        return False
    return True
