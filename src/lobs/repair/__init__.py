"""What is put right after pruning, without training."""
