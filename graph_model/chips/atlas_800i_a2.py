"""Atlas 800I A2: Ascend 910B3, and the smaller 910B4, which has the same kernels.

Sources: the op documents of ops-transformer and ops-nn; for rates vendor documents and third parties' measurements.
"""

from __future__ import annotations

from dataclasses import replace

from graph_gemma.graph_model.chips.chip import Chip, Limits, Rates

ATLAS_800I_A2 = Chip(
    name="atlas_800i_a2",
    cann_name="Ascend910B3",
    product="Atlas 800I A2",
    chips_per_card=1,
    dtypes=("float16", "bfloat16"),
    ops={
        "FusedInferAttentionScore": Limits(max_head_dim=512),
        "IncreFlashAttention": Limits(max_head_dim=512),
        "PromptFlashAttention": Limits(max_head_dim=512),
        "ScatterPaKvCache": Limits(),
        "ScatterNdUpdate": Limits(),
        "DynamicQuantUpdateScatter": Limits(),
        "RmsNorm": Limits(float32_weight=True),
        "GemmaRmsNorm": Limits(),
        "AddRmsNorm": Limits(),
        "AddRmsNormQuant": Limits(),
        "AddRmsNormDynamicQuant": Limits(),
        "RotaryMul": Limits(max_head_dim=512),
        "GeGluV2": Limits(),
        "MatMulV2": Limits(),
        "BatchMatMul": Limits(),
        "GemmV2": Limits(),
        "Quantize": Limits(),
        "DynamicQuant": Limits(),
        "QuantBatchMatmulV3": Limits(int32_result=True),
        "WeightQuantBatchMatmulV2": Limits(),
        "DequantBias": Limits(),
        "MatmulAllReduce": Limits(ranks=(1, 2, 4, 8)),
    },
    rates=Rates(
        cores=20,
        vector_cores=40,
        clock_mhz=1800,
        fp16_tflops=295.0,
        int8_tops=590.0,
        memory=64.0,
        bandwidth=1600.0,
        link=56.0,
    ),
)
ATLAS_800I_A2_910B4 = replace(
    ATLAS_800I_A2,
    name="atlas_800i_a2_910b4",
    cann_name="Ascend910B4",
    product="Atlas 800I A2 (910B4)",
    rates=Rates(
        cores=20,
        vector_cores=40,
        clock_mhz=1500,
        fp16_tflops=246.0,
        int8_tops=492.0,
        memory=32.0,
        bandwidth=800.0,
        link=56.0,
    ),
)
