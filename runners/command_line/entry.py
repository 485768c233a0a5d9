"""What every command shares: Hydra settings, --help from the comments in conf/, and errors without tracebacks."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graph_model.errors import UserError
from runners.command_line.parent_process import end_with_parent, is_rank

# Reasons that a place has, not the program: a file without permission, a disk that is full, read-only or broken.
_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
CONF = Path(__file__).resolve().parents[2] / "conf"


def main(run: Callable[[Any], None], config_name: str, config_dir: Path = CONF) -> None:
    """Call `run` with the settings of conf/<config_name>.yaml and the command line's overrides (a DictConfig).

    A UserError prints as one paragraph on stderr and exits with status 2, and so does a file or directory that cannot
    be used; a ChildProcessError (a rank has died) exits with 1, Ctrl-C with 130. --help prints every setting with the
    comment that conf/ gives it. Wrong overrides get Hydra's own message.
    """
    if is_rank():
        end_with_parent()
    # `python runners/NAME.py` puts runners/ first in the path, where its files would hide packages of their names.
    here = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    try:
        if any(argument in ("--help", "-h") for argument in sys.argv[1:]):
            from runners.command_line.help_text import help_text

            print(help_text(config_dir, config_name))
            return
        import hydra

        def task(settings: Any) -> None:
            try:
                run(settings)
                sys.stdout.flush()
            except UserError as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                sys.exit(2)
            except ChildProcessError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(1)
            except BrokenPipeError:
                # The reader has gone (`... | head`). Python would complain again when it flushes at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(141)  # what a shell reports for SIGPIPE
            except OSError as error:
                if error.filename is None or error.errno not in _PLACES:
                    raise
                print(f"error: {error.filename} cannot be used: {error.strerror}", file=sys.stderr)
                sys.exit(2)

        hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)(task)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def compose(config_name: str, overrides: Sequence[str] = (), config_dir: Path = CONF) -> Any:
    """The settings that `main` would call its command with, for use from Python (a DictConfig). Raises UserError."""
    import hydra
    from hydra.errors import HydraException

    if isinstance(overrides, str):
        raise UserError(f"The settings are {overrides!r}; they must be a list of texts like 'dtype=bfloat16'.")
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            return hydra.compose(config_name, list(overrides))
        except HydraException as error:
            raise UserError(f"The settings {list(overrides)} cannot be applied: {error}") from error


def require(settings: Any, name: str, kind: type, meaning: str) -> Any:
    """The setting `name` (dotted), which must be set and of type `kind`. Raises UserError saying its `meaning`."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(settings, name)
    if value is None:
        raise UserError(f"{name} is not set; it is {meaning}. Give {name}=VALUE.")
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
        raise UserError(f"{name} is {value!r}; it must be {meaning}.")
    return value
