"""The reproduction of the paper: data, networks, training, stages, report. The library `lobs` does not know it."""
