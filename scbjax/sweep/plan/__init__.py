"""From a study to programs, and from programs to chunks that fit."""
