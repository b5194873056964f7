"""Training: the loop, its checkpoints, its MLflow run."""
