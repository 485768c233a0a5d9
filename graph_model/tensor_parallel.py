"""Shard: the part of a model that one rank of a tensor-parallel group computes; legal world sizes."""

from __future__ import annotations

from dataclasses import dataclass

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.families import Attention, Family

LARGEST_WORLD_SIZE = 64


@dataclass(frozen=True)
class Shard:
    """Rank `rank` of `world_size`. Every rank has as many query heads, MLP columns and vocabulary rows as any other.

    The last rank's rows of the vocabulary may reach past its end: there are zeros, which no token reads or becomes.
    Key heads are split where there are enough; otherwise each rank has one, and neighbours hold the same.
    """

    rank: int = 0
    world_size: int = 1

    def heads(self, attention: Attention) -> int:
        """Query heads of this rank."""
        return attention.heads // self.world_size

    def kv_heads(self, attention: Attention) -> int:
        """Key heads of this rank."""
        return max(1, attention.kv_heads // self.world_size)

    def part(self, size: int) -> tuple[int, int]:
        """[start, stop) of this rank in a dimension of `size` that all share alike; the last may reach past its end."""
        each = -(-size // self.world_size)
        return self.rank * each, (self.rank + 1) * each

    def kv_part(self, attention: Attention) -> tuple[int, int]:
        """[start, stop) of this rank's rows of the key and value projections."""
        first = self.rank * attention.kv_heads // self.world_size
        return first * attention.head_dim, (first + self.kv_heads(attention)) * attention.head_dim

    def part_of(self, family: Family, path: str) -> tuple[int, int, int]:
        """(dim, start, stop): what this rank has of the weight [rows, columns] of the linear at `path`."""
        linear = family.linears[path]
        if linear.split == "row":
            return 1, *self.part(linear.columns)
        index = family.layer_index(path)
        if linear.split == "kv" and index is not None:
            return 0, *self.kv_part(family.layers[index].attention)
        return 0, *self.part(linear.rows)


WHOLE = Shard()


def check_world_size(config: GemmaConfig, world_size: int) -> None:
    """Raise UserError unless a model of `config` can be shared by `world_size` ranks."""
    if world_size in legal_world_sizes(config):
        return
    problem = _problem(config, world_size)
    sizes = ", ".join(map(str, legal_world_sizes(config)))
    raise UserError(
        f"world_size is {world_size}, which does not fit the model: {problem}. The world sizes that fit it are {sizes}."
    )


def legal_world_sizes(config: GemmaConfig) -> list[int]:
    """The world sizes that a model of `config` can be shared by."""
    return [size for size in range(1, LARGEST_WORLD_SIZE + 1) if _problem(config, size) is None]


def _problem(config: GemmaConfig, world_size: int) -> str | None:
    for name in ("num_attention_heads", "intermediate_size"):
        if (size := getattr(config, name)) % world_size:
            return f"{name} {size} is not a multiple of it"
    if Shard(world_size - 1, world_size).part(config.vocab_size)[0] >= config.vocab_size:
        return f"vocab_size {config.vocab_size} leaves no token to the last of them"
    kv_heads = config.num_key_value_heads
    if kv_heads % world_size and world_size % kv_heads:
        return f"num_key_value_heads {kv_heads} is neither a multiple nor a divisor of it"
    return None
