"""Recordings: decoding, corpora, dataset versions, validation, splits."""
