"""What produces the figures in docs/benchmarks/: `python benchmarks/run.py --help`."""
