"""The settings of every command: declared once, read from conf/ and the command line, checked, and typed.

declared/ has a class per command, `checking` checks values against it, `overrides` reads the command line, `conf_files`
writes conf/, and `model_settings` fills in what depends on the checkpoint. Nothing here but the last imports torch.
"""
