"""Runs the chunks of a plan, here or in the workers of Dask."""
