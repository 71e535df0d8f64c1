"""What `megaselect.verify` is tried on: real architectures and wrappers that are right, and seeded silent faults."""
