"""Trains the tiny family of the demo from nothing; a program of its own, not part of omnireg."""
