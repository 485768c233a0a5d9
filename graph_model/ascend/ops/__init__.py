"""The GE ops that our graphs are lowered to where a choice or a rule is ours: one family of ops per file."""
