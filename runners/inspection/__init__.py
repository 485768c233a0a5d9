"""What inspect_graph.py finds out about a lowered graph, and how it shows it."""
