"""Prosemill: from raw text to a gated, registered, served language model.

The pipeline is run by `dvc repro`; this package is what its stages call.
"""

__version__ = "0.1.0"
