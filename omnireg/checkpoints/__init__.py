"""Checkpoints as they lie on a disk or on the Hub: headers, bytes, digests, folders."""
