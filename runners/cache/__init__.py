"""The cache directory: compiled code on disk, writable by its owner only and checked before it is used."""

from graph_gemma.runners.cache.directory import private_directory, prune
from graph_gemma.runners.cache.store import FileStore
