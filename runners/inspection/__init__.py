"""Inspect lowered graphs for runners/inspect_graph.py: figures, text, HTML page and plots."""
