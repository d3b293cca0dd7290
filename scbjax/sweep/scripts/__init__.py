"""Finds and runs scripts: figures and benchmarks."""
