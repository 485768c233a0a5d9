"""Gemma as an FX graph: the plain model, its capture, weights, checkpoints, quantization and chips."""

import os

# torch loads the backend of an installed torch_npu while it is imported, and fails where CANN is absent.
# The Ascend backend loads torch_npu itself, when it is asked for.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

# torch's own kernels and those that Inductor compiles have a pool of OpenMP threads each. Threads that spin while
# they wait, as GNU OpenMP's do for about a millisecond, keep the other pool off the cores: with two cores and another
# busy process, a decode step of the demo took 92 ms with the default and 5 ms with this.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# Weights in huge pages: where a hypervisor translates addresses a second time, reading them in pages of 4 kB reached 16
# of 28 GB/s. torch asks for them where this is set before its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
