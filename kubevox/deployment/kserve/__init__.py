"""KServe: a model's versions in an InferenceService, in standard mode or on Knative; a cascade as an InferenceGraph.

docs/kserve.md says what is written when, what a rollout waits for, and which rights it needs.
"""

from kubevox.deployment.kserve.backend import KServeBackend
from kubevox.deployment.kserve.graph import inference_graph
from kubevox.deployment.kserve.manifests import inference_service, predictor

__all__ = ["KServeBackend", "inference_graph", "inference_service", "predictor"]
