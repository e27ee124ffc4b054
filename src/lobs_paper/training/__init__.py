"""Training, retraining and the methods that prune while they train."""
