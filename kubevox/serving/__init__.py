"""Serving: a bundle behind KServe's model server. Needs neither MLflow nor KFP."""
