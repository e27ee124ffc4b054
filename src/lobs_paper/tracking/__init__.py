"""MLflow, a view of the metrics files."""
