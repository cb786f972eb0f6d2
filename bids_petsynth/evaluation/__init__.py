"""Figures of merit: pure functions on arrays, used by the benchmarks and by the group level."""
