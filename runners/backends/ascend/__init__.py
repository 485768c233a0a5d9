"""All that knows the chip: SoC tables, the CANN stand-in, the GE interpreter, converters and listings."""
