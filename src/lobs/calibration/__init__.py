"""What calibration data says: batches, statistics of the layers, and the passes that collect them."""
