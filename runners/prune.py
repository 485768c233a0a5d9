"""Remove compiled steps that were not used for longest: python runners/prune.py [cache_limit_gb=N] [cache_dir=DIR]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.prune import PruneSettings


def prune(settings: PruneSettings) -> None:
    """Remove files until the cache is as small as the settings say, and print what was removed."""
    from graph_gemma.runners.cache import private_directory
    from graph_gemma.runners.cache import prune as prune_directory
    from graph_gemma.runners.settings.model_settings import cache_directory, cache_limit

    root = cache_directory(settings.cache_dir)
    limit = cache_limit(settings.cache_limit_gb)
    if not root.is_dir() or limit is None:
        print(f"{root}: nothing to remove")
        return
    removed, size = prune_directory(private_directory(root), limit)
    print(f"{root}: removed {removed} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(prune, "prune")
