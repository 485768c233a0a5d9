"""Ranks: the processes that share one model. Rank 0 leads; the others run the steps that it runs."""
