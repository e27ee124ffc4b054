"""Pruned networks as files, and faster on the machine at hand."""
