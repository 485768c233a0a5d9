#!/usr/bin/env bash
# msmodelslim 26.1.0, W8A8_DYNAMIC: the fake-quantized linear of its newer generation, int8 per token by its name, takes
# the activations' scales over the tokens, one per input channel. A token's result then depends on the others, later ones
# included; its variant for weights in groups has one scale per token. The files that it writes are not touched by this.
# Seen: one scale per token  : [0.3, 0.5, 0.7, 1.0]
#       the tool's linear    : [0.0, 0.0, 0.0, 0.0]
#       its first token alone: [0.3, 0.5, 0.7, 1.0]
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0 transformers==5.24.0 msmodelslim==26.1.0
cat > "$dir/see.py" <<'PY'
import torch
import msmodelslim.ir as qir
from msmodelslim.ir.qal import QDType, QParam, QScheme, QScope, QStorage

weight = QParam(scheme=qir.int8_per_channel_sym, ext={"scale": torch.full((4,), 1 / 127)})
identity = QStorage(QDType.INT8, torch.eye(4).mul(127).to(torch.int8))
linear = qir.W8A8DynamicPerChannelFakeQuantLinear(QParam(scheme=qir.int8_per_token_sym), weight, identity, None)
x = torch.tensor([[[0.3, 0.5, 0.7, 1.0], [300.0, 500.0, 700.0, 1000.0]]])
scale = x.abs().amax(-1, keepdim=True) / 127
print("one scale per token  :", [round(v, 2) for v in ((x / scale).round() * scale)[0, 0].tolist()])
print("the tool's linear    :", [round(v, 2) for v in linear(x)[0, 0].tolist()])
print("its first token alone:", [round(v, 2) for v in linear(x[:, :1])[0, 0].tolist()])
PY
HOME="$dir" "$dir/env/bin/python" "$dir/see.py" 2>/dev/null | tee "$dir/out"
grep -qF "one scale per token  : [0.3, 0.5, 0.7, 1.0]" "$dir/out"
grep -qF "the tool's linear    : [0.0, 0.0, 0.0, 0.0]" "$dir/out"
grep -qF "its first token alone: [0.3, 0.5, 0.7, 1.0]" "$dir/out"
