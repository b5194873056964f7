"""torchaudio, also where its native extension does not load.

The wheels of 2.9 and later are built for CUDA; beside a torch without it their extension raises OSError, and all of
torchaudio with it. What is needed of it here is Python: it works with the extension said to be absent, which torchaudio
provides for. transformers imports torchaudio wherever it is installed, and would fail with it.
"""

from __future__ import annotations

import sys
import types
from typing import Any

__all__ = ["import_torchaudio"]


def import_torchaudio() -> Any:
    """The module torchaudio.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torchaudio
    except OSError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        absent = types.ModuleType("torchaudio._extension")
        absent.__dict__.update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function)
        sys.modules["torchaudio._extension"] = absent
        import torchaudio
    return torchaudio
