"""Lower steps for every world size: python runners/compile_matrix.py [SETTING=VALUE ...]."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.whole_files import write_file
from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.backends.ascend.rank_graph import RankSummary
    from graph_gemma.runners.settings.declared.compile_matrix import CompileMatrixSettings

_FLOAT, _INT8_CACHE = "none", "kv8"
_HEADER = (
    "| model | dtype | quantized | world size | compiles | nodes per layer | all-reduces | other collectives |"
    " weights, GB | KV cache, kB per token | KV tokens that fit | ms per token (estimate) |"
)
_RULE = "|---|---|---|" + "---:|" * 9


def compile_matrix(settings: CompileMatrixSettings) -> None:
    """Print a Markdown table, a row per combination, as each is done, and write it where `write` says.

    Raises UserError.
    """
    from graph_gemma.graph_model.chips.registry import find_soc
    from graph_gemma.runners.backends.ascend import standin
    from graph_gemma.runners.backends.ascend.register import register_kernels
    from graph_gemma.runners.settings.model_settings import cache_directory

    soc = find_soc(settings.soc)
    target = None if settings.write is None else Path(settings.write).expanduser()
    if target is not None:
        replace_table(target, soc.name, "")  # before hours of work: a file without the table's place is refused
    standin.load(soc, cache_directory(settings.cache_dir))
    register_kernels()
    print(f"{soc.product} ({soc.cann_name}), batch {settings.batch_size}, context {settings.context}")
    table = [statement(), ""]
    print("\n".join(table))
    for line in _lines(settings):
        print(line, flush=True)
        table.append(line)
    if target is not None:
        write_file(target, replace_table(target, soc.name, "\n".join(table)))


def replace_table(path: Path, chip: str, table: str) -> str:
    """The text of a Markdown file with `table` between its comments ``<!-- compile_matrix CHIP -->`` and
    ``<!-- end -->``. Raises UserError if it has no such comments."""
    begin, end = f"<!-- compile_matrix {chip} -->\n", "<!-- end -->"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"write: {path} cannot be read ({error.strerror}). Name a Markdown file.") from None
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(
            f"write: {path} has no place for the table of {chip}. Put the lines {begin.strip()} and {end} there."
        )
    return f"{before}{begin}\n{table}\n\n{end}{after}"


def statement() -> str:
    """What the table's figures are, and what torch_npu was loaded over, once it is."""
    from graph_gemma.runners.backends.ascend import standin

    over = "the CANN stand-in: no NPU is used" if standin.is_standin() else "CANN"
    return f"Graphs are lowered and not run; times are estimates, not measured. torch_npu was loaded over {over}."


def _lines(settings: CompileMatrixSettings) -> Iterator[str]:
    yield _HEADER
    yield _RULE
    yield from rows(settings)


def rows(settings: CompileMatrixSettings) -> Iterator[str]:
    """The table's rows. The last rank stands for all: their graphs are the same."""
    from graph_gemma.graph_model.chips.registry import find_soc
    from graph_gemma.graph_model.quantization.linears import SCHEMES
    from graph_gemma.runners.backends.ascend.rank_graph import collective_counts

    soc = find_soc(settings.soc)
    with_int8_cache = (f"{scheme}+{_INT8_CACHE}" for scheme in SCHEMES)
    schemes = (_FLOAT, *SCHEMES, _INT8_CACHE, *with_int8_cache)
    unknown = next((scheme for scheme in settings.schemes if scheme not in schemes), None)
    if unknown is not None:
        raise UserError(f"schemes: {shown(unknown)} is not known; it must be one of {', '.join(schemes)}.")
    dtypes = [dtype for dtype in settings.dtypes if dtype in soc.dtypes]
    for case in itertools.product(settings.models, dtypes, settings.schemes, settings.world_sizes):
        decode, _ = (summarize(settings, *case, phase) for phase in ("decode", "prefill"))
        reduces, others = collective_counts(decode)
        kv_tokens = decode.kv_tokens(soc, settings.memory_fraction)
        yield (
            f"| {' | '.join(map(str, case))} | decode, prefill | {decode.nodes_per_layer} | {reduces} | {others} | "
            f"{decode.weight_bytes / 1e9:.2f} | {decode.kv_bytes / 1e3:.1f} | {kv_tokens:,} | "
            f"{decode.seconds * 1e3:.2f} |"
        )


def summarize(
    settings: CompileMatrixSettings, model: str, dtype: str, scheme: str, world_size: int, phase: str
) -> RankSummary:
    """What the step of the last rank costs."""
    import torch

    from graph_gemma.graph_model.ascend.legality import check_quantization
    from graph_gemma.graph_model.bucket import Bucket
    from graph_gemma.graph_model.chips.registry import find_soc
    from graph_gemma.graph_model.families import family_of
    from graph_gemma.graph_model.graph import KVCacheConfig
    from graph_gemma.graph_model.quantization.linears import Quantization, select_linears
    from graph_gemma.graph_model.quantization.schemes import find_scheme
    from graph_gemma.graph_model.tensor_parallel import Shard, check_world_size
    from graph_gemma.passes.pipeline import build_kernel_options, build_passes
    from graph_gemma.runners.backends.ascend.rank_graph import RankCase
    from graph_gemma.runners.backends.torchair import AscendOptions, kernel_passes
    from graph_gemma.runners.settings.model_settings import NAMED_CONFIGS

    soc, config = find_soc(settings.soc), NAMED_CONFIGS[model]
    check_world_size(config, world_size)
    for name, tokens in (("context", settings.context), ("prefill_tokens", settings.prefill_tokens)):
        if tokens > config.max_position_embeddings:
            raise UserError(
                f"{name} is {tokens}, but {model} has positions for {config.max_position_embeddings} tokens. Give at "
                "most so many."
            )
    quantization = None
    if scheme != _FLOAT:
        of_linears: Any = scheme.removesuffix(_INT8_CACHE).removesuffix("+") or None
        linears = select_linears(config, _keep_float(settings, of_linears), "keep_float") if of_linears else ()
        kv8 = scheme.endswith(_INT8_CACHE)
        stored = of_linears is not None and find_scheme(of_linears).calibrated
        quantization = Quantization(of_linears, linears, stored, kv8)
        for attention in family_of(config).attentions:
            check_quantization(soc, quantization, attention.head_dim, settings.block_size)
    shard = Shard(world_size - 1, world_size)
    width = -(-settings.context // settings.block_size)
    if phase == "decode":
        bucket = Bucket("decode", settings.batch_size, 1, width)
    else:
        bucket = Bucket("prefill", 1, settings.prefill_tokens, 0)
    kernels = kernel_passes(AscendOptions(soc, "exact"))
    passes = (*build_passes(settings.passes, shard), *kernels, *build_kernel_options(settings.passes))
    cache_config = KVCacheConfig(width * settings.batch_size + 1, settings.block_size)
    case = RankCase(config, soc, getattr(torch, dtype), bucket, cache_config, passes, shard, quantization)
    return case.summarize()


def _keep_float(settings: CompileMatrixSettings, scheme: str) -> list[str]:
    """Linear layers that stay in floating point: as quant=SCHEME has it, unless the setting says otherwise."""
    from graph_gemma.runners.settings.declared.model import Quant

    given = settings.keep_float
    return list(Quant.options[scheme].values.get("keep_float", ()) if given is None else given)


if __name__ == "__main__":
    main(compile_matrix, "compile_matrix")
