#!/usr/bin/env bash
# llama.cpp (llama-cpp-python 0.3.36, CPU): flash attention, which it chooses by itself, adds the values of all keys up in
# float16 in a decode step; in a prompt it does not. Where many keys have about the same score the sum loses its digits,
# and then stops growing. A float32 cache (type_k, type_v) does not help, flash attention switched off does.
# Here all scores are 0 and all tokens the same, so that attention gives the value of one token, whatever the context.
# Printed is the largest error of the logits, relative to the largest one.
# Seen: 16384 tokens: prompt 0.000, decode 0.251, with a float32 cache 0.251, without flash attention 0.000
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q llama-cpp-python==0.3.36 gguf==0.19.0
cat > "$dir/see.py" <<'PY'
import sys

import gguf
import llama_cpp as api
import numpy as np

HIDDEN, VOCABULARY, LONGEST, CHUNK, TOKEN = 64, 64, 16384, 512, 3
path = f"{sys.argv[1]}/flat.gguf"
random = np.random.default_rng(0)
embedding, value = (random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) / 8 for _ in range(2))
writer = gguf.GGUFWriter(path, "gemma")
writer.add_context_length(LONGEST)
writer.add_embedding_length(HIDDEN)
writer.add_block_count(1)
writer.add_feed_forward_length(HIDDEN)
writer.add_head_count(1)
writer.add_key_length(HIDDEN)
writer.add_value_length(HIDDEN)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_vocab_size(VOCABULARY)
writer.add_tokenizer_model("none")
one, none = np.eye(HIDDEN, dtype=np.float32), np.zeros((HIDDEN, HIDDEN), np.float32)
tensors = {"token_embd": embedding, "output_norm": one.max(0)}
tensors |= {f"blk.0.{name}": one.max(0) for name in ("attn_norm", "ffn_norm")}
tensors |= {f"blk.0.{name}": none for name in ("attn_q", "ffn_gate", "ffn_up", "ffn_down")}
tensors |= {"blk.0.attn_k": one, "blk.0.attn_v": value, "blk.0.attn_output": 4 * one}
for name, weight in tensors.items():
    writer.add_tensor(f"{name}.weight", weight)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

quiet = api.llama_log_callback(lambda *_: None)
api.llama_log_set(quiet, None)
api.llama_backend_init()
model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())


def normed(x):
    return x / np.sqrt((x * x).mean() + 1e-6)


stream = embedding[TOKEN] * HIDDEN**0.5
exact = embedding @ normed(stream + 4 * value @ normed(stream))


def error(tokens, cache, flash):
    """Of the last token as the end of a prompt, and by a step of its own after the others."""
    context = api.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch = LONGEST, CHUNK, CHUNK
    context.type_k = context.type_v = cache
    if flash is not None:
        context.flash_attn_type = flash
    found = []
    for last in (0, 1):
        made = api.llama_init_from_model(model, context)
        batch = api.llama_batch_init(CHUNK, 0, 1)
        starts = [*range(0, tokens - last, CHUNK)]
        for first in [*starts, *[tokens - 1] * last]:
            alone = last and first == tokens - 1
            batch.n_tokens = 1 if alone else min(CHUNK, tokens - last - first)
            for index in range(batch.n_tokens):
                batch.token[index], batch.pos[index] = TOKEN, first + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = index == batch.n_tokens - 1
            assert api.llama_decode(made, batch) == 0
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(made, batch.n_tokens - 1), (VOCABULARY,))
        found.append(float(np.abs(logits - exact).max() / np.abs(exact).max()))
        api.llama_free(made)
    return found


for tokens in (64, 512, 4096, 16384):
    prompt, decode = error(tokens, api.GGML_TYPE_F16, None)
    _, float32 = error(tokens, api.GGML_TYPE_F32, None)
    _, without = error(tokens, api.GGML_TYPE_F16, api.LLAMA_FLASH_ATTN_TYPE_DISABLED)
    print(
        f"{tokens} tokens: prompt {prompt:.3f}, decode {decode:.3f}, with a float32 cache {float32:.3f}, "
        f"without flash attention {without:.3f}"
    )
PY
"$dir/env/bin/python" "$dir/see.py" "$dir" | tee "$dir/out"
grep -qE "^16384 tokens: prompt 0\.00., decode 0\.[1-9].*, with a float32 cache 0\.[1-9].*, without .* 0\.00.$" "$dir/out"
