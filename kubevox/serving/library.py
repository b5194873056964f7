"""What of KServe is used here, imported in one place.

KServe's server module parses the arguments of whatever process imports it, abbreviations included: it takes a
``--config FILE`` of ours for its own ``--configure_logging`` and ends the process. So it is imported with no arguments
in sight. Names come from KServe one by one: at the repository's root a bare ``import kserve`` can find the folder.
"""

from __future__ import annotations

import sys

_arguments, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
    from kserve.errors import InvalidInput
    from kserve.logging import logger
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v2_datamodels import InferenceRequest, RequestInput
finally:
    sys.argv = _arguments

__all__ = [
    "DataPlane",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceRequest",
    "InvalidInput",
    "Model",
    "ModelServer",
    "RESTServer",
    "RequestInput",
    "logger",
    "model_server",
]
