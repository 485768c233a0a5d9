#!/usr/bin/env bash
# gguf 0.19.0, GGUFReader: it does not look where the file ends. Of a field that states more entries than the file holds,
# each one beyond the end is read as an empty array, without an error: time and memory follow the number that is stated,
# not the file's size. And each entry of a whole file becomes an array, too, so that Gemma's vocabulary of 262,144 pieces
# takes some 20 s.
# Seen: 49 bytes: 1000000 entries, 0 bytes of data, no error
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q gguf==0.19.0
cat > "$dir/see.py" <<'PY'
import struct
import sys

from gguf import GGUFReader

# Version 3, no tensors, one field: "a", an array of uint8 that states a million entries. The file ends there.
content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 0, 1_000_000)
with open(sys.argv[1], "wb") as file:
    file.write(content)
field = GGUFReader(sys.argv[1]).fields["a"]
found = sum(field.parts[index].nbytes for index in field.data)
print(f"{len(content)} bytes: {len(field.data)} entries, {found} bytes of data, no error")
PY
"$dir/env/bin/python" "$dir/see.py" "$dir/a.gguf" | tee "$dir/out"
grep -qF "bytes: 1000000 entries, 0 bytes of data, no error" "$dir/out"
