"""The CANN stand-in: the real torch_npu and torchair on a machine that has neither an NPU nor CANN.

torch_npu's shared objects need CANN's libraries to be loaded. Where those are absent, `load` builds one small C
library that answers under their names, preloads it, imports torch_npu and replaces the few functions through which
torchair reaches the engine: graphs that torchair builds are then executed by the GE interpreter on the CPU.
Nothing computes on the stand-in's "device" but that interpreter: an eager op on an npu tensor raises.

Where CANN is present, `load` imports torch_npu and changes nothing.
"""

from graph_gemma.runners.backends.ascend.standin.loader import BANNER, is_standin, load, loaded_soc
