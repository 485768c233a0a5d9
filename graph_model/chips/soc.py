"""SoC tables: what each supported chip runs, and its rates for cost estimates.

Nothing off the device refuses what the hardware refuses, torchair included, so a configuration is checked against
these tables when it is composed. Sources: the op documents of ops-transformer and ops-nn, Ascend C's product pages;
rates come from vendor documents and third parties' measurements and are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graph_model.bucket import BLOCK_SIZES, Phase
from graph_model.errors import UserError
from graph_model.quantization.linears import Quantization


@dataclass(frozen=True)
class Rates:
    """Estimates, for the cost model only: per chip, peak, dense.

    cores: matrix units. vector_cores: vector units of 2048 bits. fp16_tflops, int8_tops: matrix units. bandwidth:
    memory, GB/s. memory: GB. l2: MB. link: GB/s to each other chip of the same server, one way, None where no figure
    was found.
    """

    cores: int
    vector_cores: int
    clock_mhz: int
    fp16_tflops: float
    int8_tops: float
    memory: float
    l2: float
    bandwidth: float
    link: float | None


@dataclass(frozen=True)
class Soc:
    """One chip of one product.

    name: the configuration's name. cann_name: what CANN calls the chip. dtypes: of a model's matrix products.
    paged_scatter, fused_infer_attention, gemma_rms_norm, fp32_norm_weight, dynamic_quant, int32_products,
    float32_products: whether the chip has ScatterPaKvCache, FusedInferAttentionScore, GemmaRmsNorm, RmsNorm of 16-bit x
    with an fp32 weight, DynamicQuant with what contains it, QuantBatchMatmulV3 that gives int32, with DequantBias to
    scale it, and GemmV2, which gives fp32 of 16-bit inputs.
    matmul_all_reduce: numbers of ranks that MatmulAllReduce joins, in steps of prompts; (): the chip does not have it.
    rotary_head_dim: the largest head_dim of RotaryMul. max_head_dim: of any fused attention.
    """

    name: str
    cann_name: str
    product: str
    chips_per_card: int
    dtypes: tuple[str, ...]
    paged_scatter: bool
    fused_infer_attention: bool
    gemma_rms_norm: bool
    fp32_norm_weight: bool
    dynamic_quant: bool
    int32_products: bool
    float32_products: bool
    matmul_all_reduce: tuple[int, ...]
    rotary_head_dim: int
    max_head_dim: int
    rates: Rates


ATLAS_800I_A2 = Soc(
    name="atlas_800i_a2",
    cann_name="Ascend910B3",
    product="Atlas 800I A2",
    chips_per_card=1,
    dtypes=("float16", "bfloat16"),
    paged_scatter=True,
    fused_infer_attention=True,
    gemma_rms_norm=True,
    fp32_norm_weight=True,
    dynamic_quant=True,
    int32_products=True,
    float32_products=True,
    matmul_all_reduce=(1, 2, 4, 8),
    rotary_head_dim=512,
    max_head_dim=512,
    rates=Rates(20, 40, 1800, 295.0, 590.0, 64.0, 192.0, 1600.0, 56.0),
)
ATLAS_800I_A2_910B4 = replace(
    ATLAS_800I_A2,
    name="atlas_800i_a2_910b4",
    cann_name="Ascend910B4",
    product="Atlas 800I A2 (910B4)",
    rates=Rates(20, 40, 1500, 246.0, 492.0, 32.0, 96.0, 800.0, 56.0),
)
ATLAS_300I_DUO = Soc(
    name="atlas_300i_duo",
    cann_name="Ascend310P3",
    product="Atlas 300I DUO",
    chips_per_card=2,
    dtypes=("float16",),
    paged_scatter=False,
    fused_infer_attention=False,
    gemma_rms_norm=False,
    fp32_norm_weight=False,
    dynamic_quant=False,
    int32_products=False,
    float32_products=False,
    matmul_all_reduce=(),
    rotary_head_dim=128,
    max_head_dim=512,
    rates=Rates(8, 8, 1060, 70.0, 139.0, 44.0, 16.0, 204.0, None),
)
SOCS = {soc.name: soc for soc in (ATLAS_800I_A2, ATLAS_800I_A2_910B4, ATLAS_300I_DUO)}

# Limits that no chip exceeds.
MAX_BLOCK_SIZE = 512
HEAD_DIM_ALIGNMENT = 16
INT8_HEAD_DIM_ALIGNMENT = 32  # with an int8 cache
GROUPED_HEAD_DIM_310P = 128  # IncreFlashAttention with grouped heads on the 310P
MAX_ROWS_310P = 256  # batch of IncreFlashAttention on the 310P
MAX_QUANTIZED_SIZE = 65535  # last dimensions of a quantized matrix product


def find_soc(name: str) -> Soc:
    """The SoC of a configuration's name. Raises UserError naming the legal ones."""
    if name not in SOCS:
        raise UserError(f"soc={name} is not known; the chips are {', '.join(SOCS)}.")
    return SOCS[name]


def check_model(soc: Soc, dtype: str, head_dim: int, heads: int, kv_heads: int, block_size: int) -> None:
    """Raise UserError if the chip cannot run the model at all, in whatever way; heads are those of one rank."""
    if dtype not in soc.dtypes:
        raise UserError(
            f"soc={soc.name}: dtype is {dtype}; the {soc.product} multiplies matrices in {' or '.join(soc.dtypes)} "
            f"only. Set dtype={soc.dtypes[0]}."
        )
    if head_dim % HEAD_DIM_ALIGNMENT or head_dim > soc.max_head_dim:
        raise UserError(
            f"soc={soc.name}: head_dim is {head_dim}; fused attention takes multiples of {HEAD_DIM_ALIGNMENT} up to "
            f"{soc.max_head_dim}. No setting changes a checkpoint's head_dim; choose another model or backend."
        )
    if heads % kv_heads:
        raise UserError(
            f"soc={soc.name}: one rank has {heads} query heads and {kv_heads} key heads; the first must be a multiple "
            "of the second. Choose another world size."
        )
    check_block_size(soc, block_size)


def check_block_size(soc: Soc, block_size: int, *, query_tokens: int = 1, int8_cache: bool = False) -> None:
    """Raise UserError unless paged attention of `query_tokens` per row takes the block size.

    With one query token: multiples of 16 (32 for an int8 cache) up to 512; with more: multiples of 128 up to 512, on
    the A2 only. The sizes that the error names are those of BLOCK_SIZES among them.
    """
    step = 128 if query_tokens > 1 else 32 if int8_cache else 16
    if block_size <= 0 or block_size % step or block_size > MAX_BLOCK_SIZE:
        what = "one query token" if query_tokens == 1 else "several query tokens"
        sizes = [str(size) for size in BLOCK_SIZES if size % step == 0]
        raise UserError(
            f"soc={soc.name}: block_size is {block_size}; paged attention of {what} takes multiples of {step} "
            f"up to {MAX_BLOCK_SIZE}{' with an int8 cache' if int8_cache and query_tokens == 1 else ''}. "
            f"Set block_size{'=' if len(sizes) == 1 else ' to one of '}{', '.join(sizes)}."
        )


def check_matmul_all_reduce(soc: Soc, world_size: int) -> None:
    """Raise UserError unless the chip joins products and all-reduces of so many ranks in one kernel."""
    setting = "passes.ascend_matmul_all_reduce.enabled=false"
    if not soc.matmul_all_reduce:
        raise UserError(
            f"soc={soc.name}: passes.ascend_matmul_all_reduce is enabled; the {soc.product} has no MatmulAllReduce. "
            f"Leave {setting}."
        )
    if world_size not in soc.matmul_all_reduce:
        sizes = ", ".join(map(str, soc.matmul_all_reduce))
        raise UserError(
            f"soc={soc.name}: passes.ascend_matmul_all_reduce is enabled and world_size is {world_size}; "
            f"MatmulAllReduce joins {sizes} devices of one server. Take one of these, or {setting}."
        )


@dataclass(frozen=True)
class AttentionChoice:
    """How a step's attention runs on a chip.

    op: the GE op type, or "decomposed". paged: it reads the cache through a block table itself; otherwise, except in
    prefill, blocks are gathered first. fold: query heads that share a key head become rows of the batch, this many
    per row (1: as they are). cache_passes: how often the row's keys and values are moved. reason: for the dump.
    """

    op: str
    paged: bool
    fold: int
    cache_passes: int
    reason: str


def choose_attention(
    soc: Soc,
    phase: Phase,
    block_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    batch: int,
    int8_cache: bool = False,
) -> AttentionChoice:
    """The attention op of a step; heads are those of one rank. Raises UserError where there is none."""
    check_block_size(soc, block_size, int8_cache=int8_cache)
    if soc.fused_infer_attention:
        return _choose_fused_infer(soc, phase, block_size, int8_cache)
    group = heads // kv_heads
    if phase != "decode":
        gathered = phase == "extend"
        expanded = 1 + 2 * group if group > 1 else 1  # read, written once for each query head, read again
        return AttentionChoice(
            "PromptFlashAttention",
            paged=False,
            fold=1,
            cache_passes=2 * gathered + expanded,
            reason=("the cached blocks are gathered first: " if gathered else "over the fresh keys and values: ")
            + "PromptFlashAttention has no paging; key heads are expanded, the mask is made in the graph",
        )
    gather_passes = 3  # read, written gathered, read again
    too_many = f"exceeds the {MAX_ROWS_310P} rows of IncreFlashAttention"
    if group == 1 or head_dim <= GROUPED_HEAD_DIM_310P:
        if batch <= MAX_ROWS_310P:
            return AttentionChoice("IncreFlashAttention", True, 1, 1, f"paged; {group} query heads per key head")
        reason = f"a batch of {batch} {too_many}: blocks are gathered ({gather_passes} passes)"
        return AttentionChoice("decomposed", False, 1, gather_passes, reason)
    limit = f"grouped heads need head_dim <= {GROUPED_HEAD_DIM_310P}, it is {head_dim}"
    as_rows = f"{group} query heads as rows would each read the cache, {group} passes"
    # The scores, which only a decomposition moves, are less than a pass: 8 * group / head_dim of one.
    if group <= gather_passes and batch * group <= MAX_ROWS_310P:
        reason = f"{limit}: {group} query heads become rows, each reads the cache ({group} passes; "
        reason += f"gathering takes {gather_passes} and the scores)"
        return AttentionChoice("IncreFlashAttention", True, group, group, reason)
    if group <= gather_passes:
        as_rows = f"a batch of {batch} with {group} query heads as rows {too_many}"
    reason = f"{limit}: blocks are gathered ({gather_passes} passes and the scores; {as_rows})"
    return AttentionChoice("decomposed", False, 1, gather_passes, reason)


def _choose_fused_infer(soc: Soc, phase: Phase, block_size: int, int8_cache: bool) -> AttentionChoice:
    op = "FusedInferAttentionScore"
    if phase == "decode":
        return AttentionChoice(op, True, 1, 1, f"paged, block_size {block_size}{', int8 cache' if int8_cache else ''}")
    if not int8_cache and _pages_several_tokens(soc, block_size):
        return AttentionChoice(op, True, 1, 1, f"paged, block_size {block_size}")
    if phase == "prefill":
        return AttentionChoice(op, False, 1, 1, "unpaged, over the chunk's fresh keys and values")
    if int8_cache:
        reason = "an int8 cache serves one query token only: the cached blocks are gathered and dequantized first"
    else:
        reason = f"block_size {block_size} is not a multiple of 128: the cached blocks are gathered first"
    return AttentionChoice(op, False, 1, 3, reason)


def _pages_several_tokens(soc: Soc, block_size: int) -> bool:
    try:
        check_block_size(soc, block_size, query_tokens=2)
    except UserError:
        return False
    return True


def fused_rotary(soc: Soc, head_dim: int) -> bool:
    """Whether RotaryMul takes the head_dim (a multiple of 64); otherwise rotary embedding is decomposed."""
    return head_dim % 64 == 0 and head_dim <= soc.rotary_head_dim


def norm_op(soc: Soc, mode: str) -> str:
    """The GE op type of a norm after an addition, for norm=exact or norm=fused.

    exact rounds once, as Gemma does: GemmaRmsNorm where the chip has it; elsewhere RmsNorm in fp32, between two casts.
    fused is AddRmsNorm, which rounds x / rms(x) and 1 + weight to 16 bit.
    """
    if mode == "fused":
        return "AddRmsNorm"
    if mode == "exact":
        return "GemmaRmsNorm" if soc.gemma_rms_norm else "RmsNorm"
    raise UserError(f"norm={mode} is not known; it is exact or fused.")


def check_quantized_matmul(soc: Soc, in_features: int, out_features: int, transposed: bool) -> None:
    """Raise UserError if a quantized product's weight is too wide; transposed: stored [out, in]."""
    last = in_features if transposed else out_features
    if last > MAX_QUANTIZED_SIZE:
        raise UserError(
            f"soc={soc.name}: a quantized weight's last dimension is {last}; the limit is {MAX_QUANTIZED_SIZE}. "
            "Store it as [out_features, in_features], or leave this layer unquantized."
        )


def check_quantization(soc: Soc, quantization: Quantization, head_dim: int, block_size: int) -> None:
    """Raise UserError if the chip cannot run a model that is quantized in this way."""
    if quantization.kv8:
        if not (soc.fused_infer_attention and soc.dynamic_quant):
            raise UserError(
                f"soc={soc.name}: quant.kv8, an int8 cache with a scale per token and head, needs "
                f"FusedInferAttentionScore and DynamicQuantUpdateScatter, which the {soc.product} does not have. "
                "Leave quant.kv8=false."
            )
        if head_dim % INT8_HEAD_DIM_ALIGNMENT:
            raise UserError(
                f"soc={soc.name}: head_dim is {head_dim}; with quant.kv8 it must be a multiple of "
                f"{INT8_HEAD_DIM_ALIGNMENT}. Leave quant.kv8=false."
            )
        check_block_size(soc, block_size, int8_cache=True)
    if quantization.scheme == "w8a8_dynamic" and not soc.dynamic_quant:
        raise UserError(
            f"soc={soc.name}: quantization w8a8_dynamic needs DynamicQuant, which the {soc.product} is not known to "
            "have. Take w8a8 (runners/quantize.py) or quant=w8a16."
        )
