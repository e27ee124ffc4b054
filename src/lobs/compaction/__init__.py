"""Units that pruning left empty leave the network."""
