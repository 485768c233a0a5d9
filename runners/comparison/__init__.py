"""Two configurations on the same texts: how far apart their next-token distributions are."""
