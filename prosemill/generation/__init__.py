"""Decoding: many requests at once on one model.

What a model is made of (`layout`), its matrices in the arithmetic that serves best (`kernels`), its forward pass with keys and values
(`decoder`), what an engine is to those who ask it (`engine_thread`), who gets a token when (`engine`, or vLLM in its place: `on_vllm`), how
the next token is chosen (`sampling`), and what text can be shown of the tokens so far (`text`).
"""
