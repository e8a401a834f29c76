"""Pure geometry in float32 or better: no networks, no files."""
