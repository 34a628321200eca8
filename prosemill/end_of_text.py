"""The token that ends every document: one choice for the data, the training and the generation.

id = choose_end_of_text(tokenizer.get_vocab(), tokenizer.eos_token)
"""

from prosemill.errors import ProsemillError

END_OF_TEXT = "<|endoftext|>"


def choose_end_of_text(vocabulary: dict[str, int], end_of_sequence: str | None) -> int:
    """Id of the token that ends every document: <|endoftext|> where the vocabulary has it, else the end of sequence.

    Args:
        vocabulary: Ids by token.
        end_of_sequence: The tokenizer's own end of sequence, if it has one.

    Raises:
        ProsemillError: the vocabulary has neither.
    """
    token = END_OF_TEXT if END_OF_TEXT in vocabulary else end_of_sequence
    if token is None or token not in vocabulary:
        raise ProsemillError(
            f"the tokenizer has no token that ends a text (neither {END_OF_TEXT} nor an end of sequence): choose another model"
        )
    return vocabulary[token]
