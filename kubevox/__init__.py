"""Kubevox: speech classification, from labelled recordings to a gated model behind an endpoint.

The package is a plain library: it knows nothing of Kubeflow Pipelines. `components/` wraps its functions as pipeline
steps and `pipelines/` wires them; both live in the repository, not in the wheel.
"""

__version__ = "0.1.0"
