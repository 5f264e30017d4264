"""What a checkpoint is like inside: its shift from a base, its heads, its place among others."""
