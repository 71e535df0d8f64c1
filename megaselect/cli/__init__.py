"""The command line: `megaselect train`, `megaselect data`. Nothing here imports torch before the flags are parsed."""
