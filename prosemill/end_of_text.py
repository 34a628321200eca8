"""The token that ends every document: one choice for the data, the training and the generation.

id = choose_end_of_text(tokenizer.get_vocab(), tokenizer.eos_token)
"""

from prosemill.errors import ProsemillError

END_OF_TEXT = "<|endoftext|>"


def choose_end_of_text(vocabulary: dict[str, int], end_of_sequence: str | None, name: str = "auto") -> int:
    """Id of the token that ends every document.

    Args:
        vocabulary: Ids by token.
        end_of_sequence: The tokenizer's own end of sequence, if it has one.
        name: The token, or `auto`: <|endoftext|> where the vocabulary has it, else the end of sequence.

    Raises:
        ProsemillError: the vocabulary lacks the token.
    """
    automatic = END_OF_TEXT if END_OF_TEXT in vocabulary else end_of_sequence
    token = automatic if name == "auto" else name
    if token is None or token not in vocabulary:
        raise ProsemillError(f"`tokenize.end_of_text`: the vocabulary has no token {token!r}; name one that it has in params.yaml")
    return vocabulary[token]
