"""What an experiment is made of: data, networks, training, retraining with fixed masks, evaluation, tracking."""
