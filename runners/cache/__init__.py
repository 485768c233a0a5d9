"""The cache directory: compiled code on disk, writable by its owner only and checked before it is used."""

from runners.cache.directory import private_directory, prune
from runners.cache.store import FileStore
