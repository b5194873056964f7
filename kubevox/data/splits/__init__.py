"""Speaker-disjoint splits, with a certificate that says what was checked.

``<store>/splits/<hash>/`` holds ``split.parquet`` (utterance, label, split, fold, source id) and ``certificate.json``.
The hash is over the rows, the task's labels, the dataset's hash and the protocol, so a split that was edited no longer
has its name, and the certificate carries a hash of itself; :func:`load_split` finds everything that it says anew, every
time a split is used.

A speaker once assigned stays where it is. Assignments are a log of immutable entries, written once each under
``<store>/assignments/<log>/<number>.json``; a later entry only adds speakers that no earlier one names.
"""

from kubevox.data.splits.certified import Split, load_split, make_split
from kubevox.data.splits.protocols import SPLITS, SplitName, assign_speakers

__all__ = ["SPLITS", "Split", "SplitName", "assign_speakers", "load_split", "make_split"]
