"""Find the champion: the bundle in production, which a challenger has to match."""

import os

from kfp import dsl


@dsl.component(base_image=os.environ.get("KUBEVOX_IMAGE", "kubevox-python:0.1.0"), install_kfp_package=False)
def find_champion(name: str, tracking: str) -> str:
    """Look up the registry's alias ``champion``; never cached.

    Args:
        name: the registered model.
        tracking: MLflow's URI.

    Returns:
        The champion's bundle URI, or "" where there is none yet.
    """
    from kubevox.progress import result
    from kubevox.registry import Registry

    champion = Registry(tracking).champion(name)
    summary = f"{name} version {champion.version}" if champion else "none yet: only the absolute criteria hold"
    result("find_champion", summary=summary, version=champion.version if champion else None)
    return champion.bundle_uri if champion else ""
