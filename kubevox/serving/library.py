"""What of KServe is used here, imported in one place.

KServe's server module parses the arguments of whatever process imports it, abbreviations included: it takes a
``--config FILE`` of ours for its own ``--configure_logging`` and ends the process. So it is imported with no arguments
in sight. Names come from KServe one by one: at the repository's root a bare ``import kserve`` can find the folder.
"""

from __future__ import annotations

import sys

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
    from kserve.errors import InferenceError, InvalidInput, ModelNotFound, ModelNotReady
    from kserve.logging import logger
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
    from kserve.protocol.grpc.servicer import InferenceServicer
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v2_datamodels import InferenceRequest, RequestInput
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceError",
    "InferenceRequest",
    "InferenceServicer",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelServer",
    "RESTServer",
    "RequestInput",
    "add_GRPCInferenceServiceServicer_to_server",
    "logger",
    "model_server",
]
