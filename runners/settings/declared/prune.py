"""The settings of runners/prune.py."""

from __future__ import annotations

from graph_gemma.runners.settings.schema import Settings, setting


class PruneSettings(Settings):
    """Make the cache of compiled steps smaller."""

    cache_dir: str | None = setting(None, "The cache's directory; null: graph_gemma in the user's cache directory.")
    cache_limit_gb: float | None = setting(
        0,
        "The size to which it is reduced, in GB: what was not used for longest is removed, and made again when it is "
        "needed.",
        least=0,
        must="a number of gigabytes from 0 on, or null for no limit",
    )
