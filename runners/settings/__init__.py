"""The settings that commands share, checked and resolved."""

from runners.settings.settings import (
    NAMED_CONFIGS,
    SMALLEST_CHUNK,
    ModelSettings,
    RankSettings,
    cache_directory,
    cache_limit,
    check_devices,
    check_place,
    require_torchair,
    resolve_settings,
    writable_directory,
)

__all__ = [
    "NAMED_CONFIGS",
    "SMALLEST_CHUNK",
    "ModelSettings",
    "RankSettings",
    "cache_directory",
    "cache_limit",
    "check_devices",
    "check_place",
    "require_torchair",
    "resolve_settings",
    "writable_directory",
]
