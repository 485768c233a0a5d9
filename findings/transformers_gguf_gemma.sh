#!/usr/bin/env bash
# transformers 5.24.0, from_pretrained(gguf_file=...), of Gemma 2 and 3: what the file states of soft-caps, of linear
# rotary scaling (Gemma 3 from 4B on has factor 8) and of the pattern of layers is dropped without a word, and defaults are
# taken. llama.cpp computes with these fields. And eps is the float32's decimal, 9.99e-07. Gemma 1 is refused.
# Seen: gemma2: caps 50.0 30.0, the file states 4.0 6.0
#       gemma3: rope {'rope_theta': 1000000.0, 'rope_type': 'default'}, the file states linear 8.0
#       gemma3: eps 9.999999974752427e-07
#       gemma: GGUF model with architecture gemma is not supported yet.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0
cat > "$dir/see.py" <<'PY'
import sys

import gguf
import numpy as np
from transformers import AutoConfig

for name in ("gemma2", "gemma3", "gemma"):
    writer = gguf.GGUFWriter(f"{sys.argv[1]}/{name}.gguf", name)
    writer.add_block_count(6)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(8)
    writer.add_attn_logit_softcapping(4.0)
    writer.add_final_logit_softcapping(6.0)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_vocab_size(8)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

two, three = (AutoConfig.from_pretrained(sys.argv[1], gguf_file=f"gemma{number}.gguf") for number in (2, 3))
print("gemma2: caps", two.attn_logit_softcapping, two.final_logit_softcapping, "the file states 4.0 6.0")
full = three.rope_parameters["full_attention"]
print(f"gemma3: rope {dict(sorted(full.items()))}, the file states linear 8.0")
print("gemma3: eps", three.rms_norm_eps)
try:
    AutoConfig.from_pretrained(sys.argv[1], gguf_file="gemma.gguf")
except ValueError as error:
    print(f"gemma: {error}")
PY
HF_HUB_OFFLINE=1 "$dir/env/bin/python" "$dir/see.py" "$dir" 2>/dev/null | tee "$dir/out"
grep -qF "gemma2: caps 50.0 30.0 the file states 4.0 6.0" "$dir/out"
grep -qF "gemma3: rope {'rope_theta': 1000000.0, 'rope_type': 'default'}, the file states linear 8.0" "$dir/out"
grep -qF "gemma3: eps 9.999999974752427e-07" "$dir/out"
grep -qF "gemma: GGUF model with architecture gemma is not supported yet." "$dir/out"
