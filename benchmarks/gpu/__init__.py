"""One call on a machine with a GPU: bits, tests and the headline benchmarks within nine minutes."""
