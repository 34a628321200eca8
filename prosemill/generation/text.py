"""An answer's text as its tokens come: no half characters, and nothing that a stop text might still take back.

    text = AnswerText(tokenizer, prompt_tokens, stop=("\\n\\n",))
    piece = text.add(token)      # what can be shown now, perhaps nothing
    rest = text.finish()         # what was held back

All pieces together are what decoding all tokens at once gives, up to the first stop text.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

HALF = "\ufffd"
"""What decoding gives for bytes that are not a whole character, or not yet; a text that really holds it comes a few tokens later."""
LONGEST_HALF = 3
"""Bytes, and so marks of `HALF`, that may still become a character."""
CONTEXT = 8
"""Tokens of the prompt that the first new ones are decoded with."""


class AnswerText:
    """The text that new tokens add to a prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._tokens = list(prompt[-CONTEXT:])
        num_before = len(prompt) - len(self._tokens)
        for token in reversed(prompt[max(0, num_before - LONGEST_HALF) : num_before]):
            if not self._text(0, len(self._tokens)).startswith(HALF):
                break
            self._tokens.insert(0, token)  # it begins within a character
        self._shown = 0  # tokens before this one have been decoded for good
        self._num_decoded = len(self._tokens)  # those from `_shown` to here give the context for what comes
        self._num_characters = 0  # of what comes after them, those that have been decoded for good all the same
        self._held = ""
        self.is_stopped = False
        """Whether a stop text has come; nothing is shown any more."""

    def add(self, token: int) -> str:
        """Add a token; the text that can be shown now."""
        assert not self.is_stopped
        self._tokens.append(token)
        return self._release(self._decode(is_last=False), is_last=False)

    def finish(self) -> str:
        """What was held back, now that no token comes any more."""
        return "" if self.is_stopped else self._release(self._decode(is_last=True), is_last=True)

    def _decode(self, *, is_last: bool) -> str:
        """New text of whole characters. Decoded with what stands before: some tokenizers drop a space where a text begins."""
        before = self._text(self._shown, self._num_decoded)
        whole = self._text(self._shown, len(self._tokens))
        if not whole.startswith(before.rstrip(HALF)):
            # Some tokenizers decode bytes that follow each other all at once: those of half a character take whole ones with them.
            if not is_last and len(self._tokens) - self._num_decoded <= LONGEST_HALF:
                return ""
            self._shown, before, whole = self._num_decoded, "", self._text(self._num_decoded, len(self._tokens))
        num_halves = 0 if is_last else min(len(whole) - len(whole.rstrip(HALF)), LONGEST_HALF)
        piece = whole[len(before) + self._num_characters : len(whole) - num_halves]
        if num_halves == 0 and piece:
            self._shown, self._num_decoded, self._num_characters = self._num_decoded, len(self._tokens), 0
        else:
            self._num_characters += len(piece)
        return piece

    def _text(self, begin: int, end: int) -> str:
        tokens = self._tokens[begin:end]
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, piece: str, *, is_last: bool) -> str:
        text = self._held + piece
        # The one that is whole first, however the text is cut into tokens.
        found = min(((place + len(each), place) for each in self._stop if (place := text.find(each)) >= 0), default=None)
        if found is not None:
            self.is_stopped, self._held = True, ""
            return text[: found[1]]
        num_held = 0 if is_last else max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the text's end with which the stop text may begin."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
