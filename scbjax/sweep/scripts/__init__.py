"""Finds and runs the scripts of a checkout: figures and benchmarks."""
