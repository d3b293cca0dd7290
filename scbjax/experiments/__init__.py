"""The experiments that come with the library: a module each, with a constant `EXPERIMENT`."""
