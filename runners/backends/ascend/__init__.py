"""The Ascend backend: lowering through torchair, the CANN stand-in, the GE interpreter, figures of GE graphs."""
