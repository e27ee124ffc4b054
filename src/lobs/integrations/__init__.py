"""Other libraries that a pruned network is trained with; none is needed to import this one."""
