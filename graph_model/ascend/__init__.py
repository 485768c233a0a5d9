"""The Ascend graph as data: its nodes, and the files that hold it."""
