"""Decoding: how the next token is chosen (`sampling`), and what text can be shown of the tokens so far (`text`)."""
