"""What a step holds and computes, by arithmetic before anything runs: bytes, peaks, FLOPs. Needs no torch."""
