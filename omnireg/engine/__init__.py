"""Run a plan: by streaming, or with mergekit's executor."""
