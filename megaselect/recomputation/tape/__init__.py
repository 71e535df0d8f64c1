"""Selective recomputation of any module: a step is recorded once as operators, and followed by number afterwards."""
