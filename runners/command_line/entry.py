"""Entry point of every command: settings, --help, errors without tracebacks."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.command_line.parent_process import end_with_parent, is_rank
from graph_gemma.runners.settings.declared import settings_of
from graph_gemma.runners.settings.schema import Settings

if TYPE_CHECKING:
    from graph_gemma.runners.settings.overrides import Overrides

# Errors of a file or disk and not of the program: no permission; the disk is full, read-only or broken.
_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
_RUNNERS = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # pathlib takes longer to import
CONF = os.path.join(os.path.dirname(_RUNNERS), "conf")
_S = TypeVar("_S", bound=Settings)


def main(run: Callable[[Any], None], command: str, words: int = 1) -> None:
    """Call `run` with the settings of conf/<command>.yaml and the command line's overrides, checked and typed.

    A UserError prints as one paragraph on stderr and exits with status 2, and so does a file or directory that cannot
    be used; a ChildProcessError (a rank has died) exits with 1, Ctrl-C with 130. --help prints every setting with its
    declaration's help. words: how many of sys.argv name the command, before its settings.
    """
    run_command(run, settings_of(command), command, CONF, words)


def run_command(
    run: Callable[[_S], None], settings: type[_S], config_name: str, config_dir: str, words: int = 1
) -> None:
    """As `main`, with settings declared elsewhere and the config in another directory."""
    if is_rank():
        end_with_parent()
    # `python runners/NAME.py` puts runners/ first in the path, where its files would hide packages of their names.
    sys.path[:] = [entry for entry in sys.path if not entry or os.path.realpath(entry) != _RUNNERS]
    program, given = sys.argv[:words], sys.argv[words:]
    try:
        if "--help" in given or "-h" in given:
            from graph_gemma.runners.command_line.help_text import help_text

            with errors_reported():
                print(help_text(settings, " ".join(called_as(program))), flush=True)
            return
        # --help need not wait for this.
        from graph_gemma.runners.settings.overrides import read

        with errors_reported():
            overrides = read(settings, given)
            found = _declared(settings, overrides, given, config_dir)
            if found is not None:
                run(found)
                sys.stdout.flush()
                return
        _with_hydra(run, settings, program, given, overrides.as_hydra(), config_name, config_dir)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def called_as(program: Sequence[str]) -> list[str]:
    """The command as the user types it: graph-gemma infer, or python runners/infer.py."""
    first, *others = program
    return [os.path.basename(first), *others] if others else ["python", f"runners/{os.path.basename(first)}"]


def _with_hydra(
    run: Callable[[_S], None],
    settings: type[_S],
    program: list[str],
    given: list[str],
    arguments: list[str],
    config_name: str,
    config_dir: str,
) -> None:
    import hydra

    def task(config: Any) -> None:
        sys.argv[:] = [*program, *given]  # ranks are started with it
        with errors_reported():
            run(_typed(settings, config, given))
            sys.stdout.flush()

    sys.argv[:] = [program[0], *arguments]
    hydra.main(version_base="1.3", config_path=config_dir, config_name=config_name)(task)()


class errors_reported:
    """Ends the program with a message and a status at an error that is no programming mistake."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UserError):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, ChildProcessError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, BrokenPipeError):
            # The reader has gone (`... | head`). Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)  # what a shell reports for SIGPIPE
        if isinstance(error, OSError) and error.filename is not None and error.errno in _PLACES:
            print(f"error: {error.filename} cannot be used: {error.strerror}", file=sys.stderr)
            sys.exit(2)


def compose(command: str, overrides: Sequence[str] = (), keywords: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The settings that `main` would call the command with, for use from Python. Raises UserError.

    keywords: further settings as Python values, by name.
    """
    from graph_gemma.runners.settings.keywords import of_keywords
    from graph_gemma.runners.settings.overrides import read

    if isinstance(overrides, str):
        raise UserError(f"The settings are {shown(overrides)}; they must be a list of texts like 'dtype=bfloat16'.")
    settings = settings_of(command)
    asked = read(settings, overrides)
    asked.values.update(of_keywords(settings, keywords))
    found = _declared(settings, asked, overrides, CONF)
    if found is not None:
        return found

    import hydra
    from hydra.errors import HydraException

    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        try:
            config = hydra.compose(command, asked.as_hydra())
        except HydraException as error:
            raise UserError(f"The settings {shown(list(overrides))} cannot be applied: {error}") from error
    return _typed(settings, config, overrides)


def _declared(settings: type[_S], overrides: Overrides, given: Sequence[str], config_dir: str) -> _S | None:
    """The command's settings where conf/ is as declared: Hydra, whose import takes long, would give the same.

    None: Hydra has to compose them.
    """
    from graph_gemma.runners.settings.checking import typed
    from graph_gemma.runners.settings.composing import declared_values, is_as_declared

    if overrides.hydra or overrides.sweeps or not is_as_declared(settings, config_dir):
        return None
    found = typed(settings, declared_values(settings, overrides))
    found.given = tuple(given)
    return found


def _typed(settings: type[_S], config: Any, given: Sequence[str]) -> _S:
    """Hydra's config as the command's settings. Raises UserError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from graph_gemma.runners.settings.checking import typed

    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"conf/: {error}. ${{...}} names another setting, or one of OmegaConf's resolvers.") from None
    found = typed(settings, values)
    found.given = tuple(given)
    return found
