"""The Ascend chips that are known, one file each: which kernels a chip has, their limits, and its rates."""
