"""From files, dictionaries and overrides to a checked study."""
