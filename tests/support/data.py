"""Where the data of tests lies."""

from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
DUMPS = DATA / "golden" / "passes"  # of graphs after each pass
LISTINGS = DATA / "golden" / "lowered"  # of GE graphs, by chip
REAL_DUMP = DATA / "dump"  # what dump_dir wrote of a layer for the A2
