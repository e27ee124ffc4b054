"""Data sets that were published as pickles: read without running what they might hold."""

from __future__ import annotations

import pickle

import numpy as np


class ArrayUnpickler(pickle.Unpickler):
    """Admits what a pickled numpy array consists of, and nothing else: loading it cannot run foreign code."""

    _ADMITTED = frozenset({"_reconstruct", "ndarray", "dtype"})
    _MODULES = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray"})

    def find_class(self, module: str, name: str) -> object:
        """A class by its name.

        Returns:
            The class.

        Raises:
            UnpicklingError: it does not belong to numpy's arrays.
        """
        if module in self._MODULES and name in self._ADMITTED:
            # numpy 2 renamed its internals.
            new = int(np.__version__.split(".")[0]) >= 2
            return super().find_class(module.replace("numpy.core", "numpy._core") if new else module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted, only numpy arrays are")
