"""Benchmarks and the checkpoints that they run on; never imported by the library."""
