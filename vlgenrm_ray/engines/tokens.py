"""Vocabulary of a tokenizer: special tokens, the token forms of a word, the text of each token."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NEVER = "(?!)"
_MAX_DIVISIONS = 8
"""Passes over a text until what is still a special token is left out. A pass divides what the last one formed."""
MAX_TRACKED = 128
"""Largest number of token ids whose probability vLLM returns at every position."""


class TokenVocabulary:
    """Vocabulary of a fast tokenizer, with a cache of decoded tokens."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        """Ids of special tokens: end of turn, image placeholders, ..."""
        spellings = sorted((added[i].content for i in self.special), key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, filter(None, spellings))) or _NEVER)
        self._divided = {spelling: self._divide(spelling) for spelling in spellings}
        self._texts: dict[int, str] = {}
        self._forms = lru_cache(maxsize=64)(self._find_forms)

    def escape_special_tokens(self, text: str) -> str:
        """Return `text` with a blank inside the spelling of every special token: `<|im_end|>` becomes `< |im_end|>`.

        Otherwise the tokenizer would produce the special token, and a text could end its turn or add an image. A
        special token that no blank divides, for instance one of a single character, is replaced by a blank or left out.
        """
        for _ in range(_MAX_DIVISIONS):
            if not self._spelling.search(text):
                return text
            text = self._spelling.sub(lambda match: self._divided[match[0]], text)
        # The blanks themselves form special tokens with their neighbours. Leaving them out comes to an end.
        while self._spelling.search(text):
            text = self._spelling.sub("", text)
        return text

    def _divide(self, spelling: str) -> str:
        """Return a special token's spelling with a blank in it, or a blank or "" if no blank divides it."""
        divided = (f"{spelling[:i]} {spelling[i:]}" for i in range(1, len(spelling)))
        return next((text for text in (*divided, " ") if not self._spelling.search(text)), "")

    def token_ids(self, words: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return for each word the ids whose text is that word, ignoring case and surrounding blanks.

        Raises InputError if the tokenizer has no such token, or if there are more than `MAX_TRACKED` ids in all.
        """
        ids = {word: self._forms(word) for word in words}
        for word, forms in ids.items():
            if not forms:
                raise InputError(
                    f"the model's tokenizer has no token for the word {word!r}; its probability cannot be read"
                )
        if (total := sum(map(len, ids.values()))) > MAX_TRACKED:
            raise InputError(
                f"the words {list(words)} have {total} token forms, limit {MAX_TRACKED}; watch fewer words"
            )
        return ids

    def _find_forms(self, word: str) -> tuple[int, ...]:
        target = word.strip().casefold()
        # A token's raw spelling contains its letters, so only tokens whose spelling contains the word are decoded.
        candidates = (i for raw, i in self._tokenizer.get_vocab().items() if target in raw.casefold())
        return tuple(
            sorted(i for i in candidates if i not in self.special and self.text(i).strip().casefold() == target)
        )

    def text(self, token: int) -> str:
        """Return the text of one token."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def split_text(self, tokens: Sequence[int]) -> tuple[str, list[str]]:
        """Return the text of `tokens` (none of them special), and the part of it that each token adds."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        pieces = [self.text(t) for t in tokens]
        if "".join(pieces) == text:
            return text, pieces
        # A character made of several tokens belongs to the last of them.
        pieces, written = [], 0
        for end in range(1, len(tokens) + 1):
            so_far: str = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
            done = len(text) if end == len(tokens) else len(so_far.rstrip("\ufffd"))
            done = max(done, written)
            pieces.append(text[written:done])
            written = done
        return text, pieces
