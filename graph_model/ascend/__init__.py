"""GE graphs as plain data: nodes, files, chips' limits, bytes moved; and the Ascend ops that passes select."""
