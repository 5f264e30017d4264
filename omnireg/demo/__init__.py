"""A tiny real family of models that shows what merging keeps and what it loses."""
