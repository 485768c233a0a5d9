"""The settings that decide which model is built, checked and resolved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graph_model.ascend.legality import check_model, check_quantization
from graph_model.ascend.ops.collective import check_matmul_all_reduce
from graph_model.bucket import BLOCK_SIZES
from graph_model.checkpoint.quantized import read_quantization
from graph_model.chips.chip import Chip
from graph_model.chips.registry import find_soc
from graph_model.config import DTYPES, GEMMA_2B, GEMMA_7B, GemmaConfig, read_config
from graph_model.errors import UserError
from graph_model.families import family_of
from graph_model.quantization.linears import SCHEMES, Quantization, select_linears
from graph_model.quantization.schemes import find_scheme, scheme_of
from graph_model.tensor_parallel import Shard, check_world_size
from runners import demo
from runners.settings.values import at_least, boolean, group, text_list, text_or_none

SMALLEST_CHUNK = 64
_DEFAULT_MAX_SEQ_LEN = 4096
_DEFAULT_SOC = "atlas_800i_a2"
NAMED_CONFIGS = {"gemma_2b": GEMMA_2B, "gemma_7b": GEMMA_7B}


@dataclass(frozen=True)
class RankSettings:
    """Where the ranks run and meet, see conf/infer.yaml. timeout: seconds."""

    devices: tuple[int, ...] | None = None
    master_address: str = "127.0.0.1"
    master_port: int | None = 20030
    timeout: int = 600


@dataclass(frozen=True)
class ModelSettings:
    """What to build, with every default filled in.

    checkpoint_dir is None only with random weights of a named size. quantization: the checkpoint's, or what loading
    makes of floating-point weights; None: nothing is quantized. soc is None unless the backend is torchair.
    cache_limit: bytes.
    """

    config: GemmaConfig
    checkpoint_dir: Path | None
    random_weights: bool
    quantization: Quantization | None
    dtype: str
    backend: str
    soc: Chip | None
    norm: str
    block_size: int
    max_batch_size: int
    max_prefill_batch_size: int
    max_seq_len: int
    max_prefill_tokens: int
    num_blocks: int | None
    memory_fraction: float
    passes: dict[str, dict[str, Any]]
    dump_dir: Path | None
    cache_dir: Path
    cache_limit: float | None = None
    world_size: int = 1
    ranks: RankSettings = RankSettings()


def resolve_settings(settings: Any) -> ModelSettings:
    """Check the Hydra settings that concern the model. Raises UserError naming the setting."""
    from omegaconf import OmegaConf

    weights = settings.weights
    if weights not in ("checkpoint", "random"):
        raise UserError(f"weights is {weights!r}; it must be checkpoint or random.")
    model = group("model", settings)
    config, directory = _model(model.name, text_or_none("model.path", model.path), weights == "random")
    if settings.dtype is not None and settings.dtype not in DTYPES:
        raise UserError(f"dtype is {settings.dtype!r}; it must be one of {', '.join(DTYPES)}, or null.")
    world_size = at_least("world_size", settings.world_size, 1)
    check_world_size(config, world_size)
    if settings.block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UserError(f"block_size is {settings.block_size!r}; it must be one of {sizes}.")
    dtype = settings.dtype or config.dtype
    stored = None if directory is None or weights == "random" else read_quantization(directory, config)
    quantization = _quantization(settings, config, stored)
    soc = _soc(settings, config, dtype, Shard(0, world_size), quantization)
    _check_matmul_all_reduce(settings, soc, world_size, quantization)
    fraction = settings.memory_fraction
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
        raise UserError(f"memory_fraction is {fraction!r}; it must be above 0 and at most 1.")
    max_prefill_tokens = at_least("max_prefill_tokens", settings.max_prefill_tokens, SMALLEST_CHUNK)
    if max_prefill_tokens % SMALLEST_CHUNK:
        raise UserError(f"max_prefill_tokens is {max_prefill_tokens}; it must be a multiple of {SMALLEST_CHUNK}.")
    return ModelSettings(
        config=config,
        checkpoint_dir=directory,
        random_weights=weights == "random",
        quantization=quantization,
        dtype=dtype,
        backend=settings.backend,
        soc=soc,
        norm=settings.norm,
        block_size=settings.block_size,
        max_batch_size=at_least("max_batch_size", settings.max_batch_size, 1),
        max_prefill_batch_size=at_least("max_prefill_batch_size", settings.max_prefill_batch_size, 1),
        max_seq_len=_max_seq_len(settings, config),
        max_prefill_tokens=max_prefill_tokens,
        num_blocks=None if settings.num_blocks is None else at_least("num_blocks", settings.num_blocks, 1),
        memory_fraction=float(fraction),
        passes=OmegaConf.to_container(group("passes", settings)),  # type: ignore[arg-type]
        dump_dir=None if settings.dump_dir is None else writable_directory("dump_dir", settings.dump_dir),
        cache_dir=cache_directory(settings.cache_dir),
        cache_limit=cache_limit(settings.cache_limit_gb),
        world_size=world_size,
        ranks=_ranks(settings, world_size),
    )


def check_place(settings: ModelSettings, world_size: int) -> None:
    """Raise UserError unless the launcher started as many ranks as the settings say."""
    if settings.world_size != world_size:
        raise UserError(
            f"world_size is {settings.world_size}, and the launcher (torchrun) started {world_size} ranks. Give "
            f"world_size={world_size}, or another --nproc-per-node."
        )


def check_devices(settings: ModelSettings, ranks: int, count: int | None = None) -> None:
    """Raise UserError unless each of the `ranks` of this machine gets a device of its own.

    count: devices that the machine has, a chip each; None where that is not known, or its memory and cores serve all.
    """
    given = settings.ranks.devices
    devices = tuple(range(ranks if count is None else count)) if given is None else given
    absent = count is not None and any(index >= count for index in devices)
    if not absent and len(devices) >= ranks:
        return
    has = "" if count is None else f", of {count} that this machine has, 0 to {count - 1}"
    soc = settings.soc
    per_card = "" if soc is None or soc.chips_per_card == 1 else f" An {soc.product} card is {soc.chips_per_card}."
    raise UserError(
        f"ranks.devices: {ranks} ranks need a device each, and {len(devices)} are given "
        f"({', '.join(map(str, devices)) or 'none'}){has}.{per_card} Give as many as there are ranks, or a smaller "
        "world_size."
    )


def require_torchair(settings: ModelSettings) -> None:
    """Raise UserError unless the settings are for one Ascend chip, which some commands are about."""
    if settings.backend != "torchair" or settings.world_size != 1:
        raise UserError(
            f"backend is {settings.backend} and world_size {settings.world_size}; this command is about the graphs of "
            "one Ascend chip. Leave backend=torchair world_size=1."
        )


def cache_directory(value: Any) -> Path:
    """What the setting cache_dir means; null: graph_gemma in the user's cache directory (XDG Base Directory)."""
    text = text_or_none("cache_dir", value)
    if text is not None:
        return Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "graph_gemma"


def cache_limit(value: Any) -> float | None:
    """The bytes that the setting cache_limit_gb allows the cache directory; null: any number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise UserError(
            f"cache_limit_gb is {value!r}; it must be a number of gigabytes from 0 on, or null for no limit."
        )
    return float(value) * 1e9


def _model(name: Any, path: str | None, random_weights: bool) -> tuple[GemmaConfig, Path | None]:
    if path is not None:
        directory = Path(path).expanduser()
        return read_config(directory), directory
    if name == "demo":
        return read_config(demo.CHECKPOINT_DIR), demo.CHECKPOINT_DIR
    if name not in NAMED_CONFIGS:
        raise UserError(f"model.name is {name!r}; it must be demo, {' or '.join(NAMED_CONFIGS)}.")
    if random_weights:
        return replace(NAMED_CONFIGS[name]), None
    raise UserError(
        f"model.path is not set. model={name} needs the directory of its checkpoint: model.path=DIR. To try the shape "
        "without a checkpoint, give weights=random."
    )


def _quantization(settings: Any, config: GemmaConfig, stored: Quantization | None) -> Quantization | None:
    """What `quant` asks for and what the checkpoint, of which `stored` is read, is: None where it is neither."""
    quant = group("quant", settings)
    scheme, kv8 = quant.scheme, boolean("quant.kv8", quant.kv8)
    keep_float = text_list("quant.keep_float", quant.keep_float)
    if scheme is not None and scheme not in SCHEMES:
        raise UserError(f"quant.scheme is {scheme!r}; it must be one of {', '.join(SCHEMES)}.")
    if stored is not None:
        if scheme in (None, stored.scheme):
            return replace(stored, kv8=kv8)
        raise UserError(
            f"quant={scheme}: the checkpoint is quantized already, as {stored.scheme} (quantize in config.json). "
            "Leave quant out, or give the floating-point original."
        )
    if scheme is None:
        return Quantization(None, kv8=True) if kv8 else None
    calibrated = find_scheme(scheme).calibrated
    if calibrated and settings.weights != "random":
        others = " or ".join(f"quant={name}" for name in SCHEMES if not find_scheme(name).calibrated)
        raise UserError(
            f"quant={scheme} needs scales of the activations, and a floating-point checkpoint has none. Make a "
            f"quantized checkpoint with them: python runners/quantize.py model.path=DIR quant={scheme} output_dir=NEW, "
            f"then give model.path=NEW. Without such scales run {others}."
        )
    return Quantization(scheme, select_linears(config, keep_float), stored=calibrated, kv8=kv8)


def _soc(
    settings: Any, config: GemmaConfig, dtype: str, shard: Shard, quantization: Quantization | None
) -> Chip | None:
    """The chip to lower for, which must be able to run the model; None unless the backend is torchair."""
    if settings.norm not in ("exact", "fused"):
        raise UserError(f"norm is {settings.norm!r}; it must be exact or fused.")
    if settings.backend != "torchair":
        if settings.soc is not None:
            raise UserError(f"soc is {settings.soc!r}, which has a meaning with backend=torchair only. Leave it out.")
        if settings.norm != "exact":
            raise UserError(f"norm is {settings.norm!r}; it has a meaning with backend=torchair only. Leave it out.")
        return None
    soc = find_soc(settings.soc or _DEFAULT_SOC)
    for attention in family_of(config).attentions:
        heads, kv_heads = shard.heads(attention), shard.kv_heads(attention)
        check_model(soc, dtype, attention.head_dim, heads, kv_heads, settings.block_size)
        if quantization is not None:
            check_quantization(soc, quantization, attention.head_dim, settings.block_size)
    return soc


def _check_matmul_all_reduce(
    settings: Any, soc: Chip | None, world_size: int, quantization: Quantization | None
) -> None:
    options = group("passes", settings).get("ascend_matmul_all_reduce")
    if not isinstance(options, Mapping) or not options.get("enabled"):
        return
    if soc is None:
        raise UserError(
            "passes.ascend_matmul_all_reduce is enabled, which has a meaning with backend=torchair only. Leave it out."
        )
    check_matmul_all_reduce(soc, world_size)
    scheme = scheme_of(quantization)
    if scheme is not None and scheme.exact_sums:
        raise UserError(
            f"passes.ascend_matmul_all_reduce is enabled and the model is {scheme.name}, whose ranks sum int32 and "
            "float32: MatmulAllReduce sums 16 bit. Leave passes.ascend_matmul_all_reduce.enabled=false."
        )


def _ranks(settings: Any, world_size: int) -> RankSettings:
    """The settings of the group `ranks`, which a command that runs on one device need not have."""
    if "ranks" not in settings:
        return RankSettings()
    given = group("ranks", settings)
    devices, port = given.devices, given.master_port
    address = text_or_none("ranks.master_address", given.master_address)
    if address is None:
        raise UserError("ranks.master_address is not set; it is the address where the ranks meet, such as 127.0.0.1.")
    if devices is not None:
        numbers = list(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else [None]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in numbers) or len(set(numbers)) < len(
            numbers
        ):
            raise UserError(f"ranks.devices is {devices!r}; it must be a list of different device numbers, or null.")
        devices = tuple(numbers)
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535):
        raise UserError(f"ranks.master_port is {port!r}; it must be a port from 1 to 65535, or null for a free one.")
    timeout = given.timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1:
        raise UserError(f"ranks.timeout is {timeout!r}; it must be a whole number of seconds, at least 1.")
    return RankSettings(devices, address, port, timeout)


def _max_seq_len(settings: Any, config: GemmaConfig) -> int:
    limit = config.max_position_embeddings
    if settings.max_seq_len is None:
        return min(limit, _DEFAULT_MAX_SEQ_LEN)
    value = at_least("max_seq_len", settings.max_seq_len, 2)
    if value > limit:
        raise UserError(
            f"max_seq_len is {value}, but the model has positions for {limit} tokens (max_position_embeddings in "
            f"config.json). Give at most {limit}."
        )
    return value


def writable_directory(name: str, value: Any) -> Path:
    """The directory that setting `name` names, created if it is not there. Raises UserError."""
    text = text_or_none(name, value)
    if text is None:
        raise UserError(f"{name} is not set; it is a directory to write to. Give {name}=DIR.")
    path = Path(text).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be created ({error.strerror}). Name another directory.") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{name}: {path} is not writable. Name another directory.")
    return path
