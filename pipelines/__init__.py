"""Pipelines: components wired together, run locally or compiled for a cluster from the same function."""
