"""The command line, a file a command. Nothing here imports torch before the flags are parsed."""
