"""Verify lowered graphs for runners/verify.py: ops alone, steps whole, and the report."""
