"""graph_model is imported before torch: an installed torch_npu must not be loaded by torch itself."""

import graph_model  # noqa: F401
