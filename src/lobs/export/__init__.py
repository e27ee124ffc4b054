"""Pruned networks as files."""
