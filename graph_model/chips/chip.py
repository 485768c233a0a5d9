"""Chip: which GE ops an Ascend chip has, their limits, and its rates.

Nothing off the device refuses what the hardware refuses, torchair included, so configurations and lowered graphs are
checked against these tables. What an op takes on every chip stands with the op (graph_model/ascend/ops), which asks the
chip for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What a chip's kernel of one op type takes, in what chips differ. Source: the op's document, named in its file."""

    max_head_dim: int | None = None  # elements of one head; None: the op has no heads, or no limit is documented
    max_grouped_head_dim: int | None = None  # the same where query heads share a key head; 0: none may; None: no other
    max_rows: int | None = None  # sequences of a batch; None: no limit
    ranks: tuple[int, ...] = ()  # numbers of chips that one kernel joins; (): it joins none
    mask_only: bool = False  # attention takes neither lengths nor sparse modes: a mask alone says what is seen
    float32_weight: bool = False  # x of 16 bits may have a weight in float32
    int32_result: bool = False  # gives the integers of a quantized product, not scaled


@dataclass(frozen=True)
class Rates:
    """Peak rates of one chip, dense. Estimates, for the roofline only.

    Sources: vendor documents, Ascend C's product pages and third parties' measurements.
    """

    cores: int  # matrix units
    vector_cores: int  # vector units of 2048 bits
    clock_mhz: int  # MHz, of both
    fp16_tflops: float  # 10^12 operations a second of the matrix units, a multiply-add is two
    int8_tops: float  # 10^12 operations a second of the matrix units
    memory: float  # GB of device memory
    bandwidth: float  # GB/s of device memory
    link: float | None  # GB/s to each other chip of the same server, one way; None: no figure was found

    @property
    def memory_bytes(self) -> float:
        """Bytes of device memory."""
        return self.memory * 1e9


@dataclass(frozen=True)
class Chip:
    """One chip of one product, as the setting `soc` names it."""

    name: str  # of the configuration: soc=atlas_800i_a2
    cann_name: str  # what CANN and torch_npu call the chip
    product: str  # what the vendor sells it in
    chips_per_card: int  # devices that one card shows
    dtypes: tuple[str, ...]  # of a model's matrix products, the preferred one first
    ops: Mapping[str, Limits] = field(hash=False)  # by GE op type: those of graph_model/ascend/ops that the chip has
    rates: Rates

    def has(self, op: str) -> bool:
        """Whether the chip has a kernel of the GE op type, such as "FusedInferAttentionScore".

        Asked of the op types of graph_model/ascend/ops alone: plain ones, such as Add, every chip has.
        """
        return op in self.ops

    def limits(self, op: str) -> Limits:
        """What the chip's kernel of a GE op type takes. Raises KeyError where it has none."""
        return self.ops[op]
