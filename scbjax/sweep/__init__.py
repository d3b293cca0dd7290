"""Sweeps: typed studies, their plan, its execution and the labelled dataset that comes out."""
