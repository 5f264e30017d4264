"""The language model in a checkpoint: found in any host class, lined up, taken out, put back."""
