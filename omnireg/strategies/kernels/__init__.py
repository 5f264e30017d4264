"""Merge methods as compiled passes over chunks of their inputs."""
