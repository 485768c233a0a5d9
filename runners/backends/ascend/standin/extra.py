"""The extra `ascend`: how torch_npu and what it needs are installed, and what that changes for other programs."""

# pip takes graph-gemma as it is installed, from wherever, and adds the extra's packages.
INSTALL = (
    "pip install 'graph-gemma[ascend]'. torch then loads torch_npu whenever a program imports it, and fails where CANN "
    "is absent: programs that import torch before graph_gemma need the variable TORCH_DEVICE_BACKEND_AUTOLOAD=0."
)
