"""The stages of an experiment, one thin file each, and the command line that runs them."""
