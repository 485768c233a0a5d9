"""What only a checkout of the repository has: packages that pyproject.toml keeps out of the installed package."""

from __future__ import annotations

import importlib.util

from graph_gemma.graph_model.errors import UserError


def require_checkout(package: str, what: str) -> None:
    """Raise UserError where `package` is not there. what: the start of the message, which says what needs it."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} is not installed with the package. Run the command from a checkout of the repository.")
