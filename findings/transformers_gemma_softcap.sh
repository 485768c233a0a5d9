#!/usr/bin/env bash
# transformers 5.24.0, soft-caps of Gemma 2 and 3. A config of Gemma 3 takes attn_logit_softcapping, and the forward pass
# ignores it (final_logit_softcapping is applied): whoever carries both fields over from a config computes another model.
# Gemma 2, whose attention needs the soft-cap, refuses sdpa and takes eager attention unasked.
# Seen: gemma3_text: attention soft-cap changes logits by 0.0, final soft-cap by more than 1
#       gemma2: sdpa ValueError, default eager
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0 transformers==5.24.0
cat > "$dir/see.py" <<'PY'
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

torch.manual_seed(0)
shape = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=1, head_dim=16, sliding_window=8)
ids = torch.arange(2, 40)[None]


def gemma3(weights=None, **caps):
    model = Gemma3ForCausalLM._from_config(Gemma3TextConfig(**shape, **caps), attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if weights is not None:
        model.load_state_dict(weights)
    with torch.no_grad():
        return model.state_dict(), model(ids).logits


weights, plain = gemma3()
attention = (gemma3(weights, attn_logit_softcapping=0.05)[1] - plain).abs().max().item()
final = (gemma3(weights, final_logit_softcapping=0.5)[1] - plain).abs().max().item()
print(f"gemma3_text: attention soft-cap changes logits by {attention}, final soft-cap by "
      f"{'more than 1' if final > 1 else final}")
model = Gemma2ForCausalLM(Gemma2Config(**shape))
default = model.config._attn_implementation
try:
    model.set_attn_implementation("sdpa")
    sdpa = "accepted"
except ValueError as error:
    sdpa = type(error).__name__
print(f"gemma2: sdpa {sdpa}, default {default}")
PY
"$dir/env/bin/python" "$dir/see.py" 2>/dev/null | tee "$dir/out"
grep -qF "attention soft-cap changes logits by 0.0, final soft-cap by more than 1" "$dir/out"
grep -qF "gemma2: sdpa ValueError, default eager" "$dir/out"
