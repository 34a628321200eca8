"""BLEU and ROUGE as modules of Hugging Face's `evaluate`, loaded from here by path: no hub, no network."""
