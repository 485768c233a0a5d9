"""Atlas 300I DUO: a card of two Ascend 310P3.

Sources: the op documents of ops-transformer and ops-nn; for rates vendor documents and third parties' measurements.
"""

from __future__ import annotations

from graph_gemma.graph_model.chips.chip import Chip, Limits, Rates

ATLAS_300I_DUO = Chip(
    name="atlas_300i_duo",
    cann_name="Ascend310P3",
    product="Atlas 300I DUO",
    chips_per_card=2,
    dtypes=("float16",),
    ops={
        "IncreFlashAttention": Limits(max_head_dim=512, max_grouped_head_dim=128, max_rows=256),
        "PromptFlashAttention": Limits(max_head_dim=512, max_grouped_head_dim=0, mask_only=True),
        "ScatterNdUpdate": Limits(),
        "RmsNorm": Limits(),
        "AddRmsNorm": Limits(),
        "AddRmsNormQuant": Limits(),
        "RotaryMul": Limits(max_head_dim=128),
        "GeGluV2": Limits(),
        "MatMulV2": Limits(),
        "BatchMatMul": Limits(),
        "Quantize": Limits(),
        "QuantBatchMatmulV3": Limits(),
        "WeightQuantBatchMatmulV2": Limits(),
    },
    rates=Rates(
        cores=8,
        vector_cores=8,
        clock_mhz=1060,
        fp16_tflops=70.0,
        int8_tops=139.0,
        memory=44.0,
        bandwidth=204.0,
        link=None,
    ),
)
