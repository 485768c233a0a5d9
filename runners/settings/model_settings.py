"""ModelSettings: the settings that decide which model is built, checked, with every default filled in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graph_gemma.graph_model.ascend.legality import check_layers
from graph_gemma.graph_model.ascend.ops.collective import check_matmul_all_reduce
from graph_gemma.graph_model.checkpoint.quantized import read_quantization
from graph_gemma.graph_model.chips.chip import Chip
from graph_gemma.graph_model.chips.registry import find_soc
from graph_gemma.graph_model.config import NAMED_CONFIGS, GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization, select_linears
from graph_gemma.graph_model.quantization.schemes import find_scheme, scheme_of
from graph_gemma.graph_model.tensor_parallel import Shard, check_world_size
from graph_gemma.runners import demo
from graph_gemma.runners.settings.checking import typed
from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.declared.model import Model, Ranks

_DEFAULT_MAX_SEQ_LEN = 4096
_DEFAULT_SOC = "atlas_800i_a2"


@dataclass(frozen=True)
class ModelSettings:
    """What to build, with every default filled in; named as the settings of infer.py where nothing is said."""

    config: GemmaConfig
    checkpoint_dir: Path | None  # None: random weights of a named size
    random_weights: bool
    quantization: Quantization | None  # the checkpoint's, or what loading makes of floating-point weights
    dtype: str
    backend: str
    soc: Chip | None  # None unless the backend is torchair
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
    cache_limit: float | None = None  # bytes; None: any size
    world_size: int = 1
    ranks: Ranks = field(default_factory=lambda: typed(Ranks, {}))
    verbosity: int = 0


def resolve_settings(settings: InferSettings) -> ModelSettings:
    """Fill in what depends on the checkpoint, the chip and the machine. Raises UserError naming the setting."""
    random = settings.weights == "random"
    config, directory = _model(settings.model, random)
    check_world_size(config, settings.world_size)
    dtype = settings.dtype or config.dtype
    stored = None if directory is None or random else read_quantization(directory, config)
    quantization = _quantization(settings, config, stored)
    soc = _soc(settings, config, dtype, Shard(0, settings.world_size), quantization)
    _check_matmul_all_reduce(settings, soc, quantization)
    devices = settings.ranks.devices
    if devices is not None and len(set(devices)) < len(devices):
        raise UserError(f"ranks.devices is {shown(list(devices))}; it must be a list of different device numbers.")
    return ModelSettings(
        config=config,
        checkpoint_dir=directory,
        random_weights=random,
        quantization=quantization,
        dtype=dtype,
        backend=settings.backend,
        soc=soc,
        norm=settings.norm,
        block_size=settings.block_size,
        max_batch_size=settings.max_batch_size,
        max_prefill_batch_size=settings.max_prefill_batch_size,
        max_seq_len=_max_seq_len(settings, config),
        max_prefill_tokens=settings.max_prefill_tokens,
        num_blocks=settings.num_blocks,
        memory_fraction=settings.memory_fraction,
        passes=settings.passes,
        dump_dir=None if settings.dump_dir is None else writable_directory("dump_dir", settings.dump_dir),
        cache_dir=cache_directory(settings.cache_dir),
        cache_limit=cache_limit(settings.cache_limit_gb),
        world_size=settings.world_size,
        ranks=settings.ranks,
        verbosity=settings.verbosity,
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


def cache_directory(value: str | None) -> Path:
    """Directory of the setting cache_dir; null: graph_gemma in the user's cache directory (XDG Base Directory)."""
    if value is not None:
        return Path(value).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "graph_gemma"


def cache_limit(value: float | None) -> float | None:
    """The bytes that the setting cache_limit_gb allows the cache directory; null: any number."""
    return None if value is None else value * 1e9


def model_directory(model: Model) -> Path | None:
    """The checkpoint that the group `model` names; None: a named shape without one."""
    if model.path is not None:
        return Path(model.path).expanduser()
    return demo.CHECKPOINT_DIR if model.name == "demo" else None


def _model(model: Model, random_weights: bool) -> tuple[GemmaConfig, Path | None]:
    directory = model_directory(model)
    if directory is not None:
        return read_config(directory), directory
    if random_weights:
        return replace(NAMED_CONFIGS[model.name]), None
    raise UserError(
        f"model.path is not set. model={model.name} needs the directory of its checkpoint: model.path=DIR. To try the "
        "shape without a checkpoint, give weights=random."
    )


def _quantization(settings: InferSettings, config: GemmaConfig, stored: Quantization | None) -> Quantization | None:
    """What `quant` asks for and what the checkpoint, of which `stored` is read, is: None where it is neither."""
    quant = settings.quant
    scheme, kv8 = quant.scheme, quant.kv8
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
            f"quantized checkpoint with them: graph-gemma quantize model.path=DIR quant={scheme} output_dir=NEW, "
            f"then give model.path=NEW. Without such scales run {others}."
        )
    return Quantization(scheme, select_linears(config, list(quant.keep_float)), stored=calibrated, kv8=kv8)


def _soc(
    settings: InferSettings, config: GemmaConfig, dtype: str, shard: Shard, quantization: Quantization | None
) -> Chip | None:
    """The chip to lower for, which must be able to run the model; None unless the backend is torchair."""
    if settings.backend != "torchair":
        if settings.soc is not None:
            raise UserError(f"soc is {settings.soc!r}, which has a meaning with backend=torchair only. Leave it out.")
        if settings.norm != "exact":
            raise UserError(f"norm is {settings.norm!r}; it has a meaning with backend=torchair only. Leave it out.")
        return None
    soc = find_soc(settings.soc or _DEFAULT_SOC)
    check_layers(soc, family_of(config), dtype, shard, settings.block_size, quantization)
    return soc


def _check_matmul_all_reduce(settings: InferSettings, soc: Chip | None, quantization: Quantization | None) -> None:
    if not settings.passes.get("ascend_matmul_all_reduce", {}).get("enabled"):
        return
    if soc is None:
        raise UserError(
            "passes.ascend_matmul_all_reduce is enabled, which has a meaning with backend=torchair only. Leave it out."
        )
    check_matmul_all_reduce(soc, settings.world_size)
    scheme = scheme_of(quantization)
    if scheme is not None and scheme.exact_sums:
        raise UserError(
            f"passes.ascend_matmul_all_reduce is enabled and the model is {scheme.name}, whose ranks sum int32 and "
            "float32: MatmulAllReduce sums 16 bit. Leave passes.ascend_matmul_all_reduce.enabled=false."
        )


def _max_seq_len(settings: InferSettings, config: GemmaConfig) -> int:
    limit = config.max_position_embeddings
    if settings.max_seq_len is None:
        return min(limit, _DEFAULT_MAX_SEQ_LEN)
    if settings.max_seq_len > limit:
        raise UserError(
            f"max_seq_len is {settings.max_seq_len}, but the model has positions for {limit} tokens "
            f"(max_position_embeddings in config.json). Give at most {limit}."
        )
    return settings.max_seq_len


def writable_directory(name: str, value: str) -> Path:
    """The directory that setting `name` names, created if it is not there. Raises UserError."""
    path = Path(value).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be created ({error.strerror}). Name another directory.") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{name}: {path} is not writable. Name another directory.")
    return path
