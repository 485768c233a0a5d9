"""Gemma inference on Huawei Ascend NPUs as one static graph."""
