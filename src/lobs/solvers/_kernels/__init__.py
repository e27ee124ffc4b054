"""Compiled and batched loops of the solvers."""
