"""The cache directory: compiled code on disk, which only its owner can write and which is checked before it is used."""

from runners.cache.directory import private_directory, prune
from runners.cache.store import FileStore
