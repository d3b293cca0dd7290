"""What a run leaves: chunks, datasets, their locks, and the comparison with a computation anew."""
