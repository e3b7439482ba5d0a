"""The encodings of the prompts that a client has used last. Later turns, and texts without a cloud, read them again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from chaperone_common.conditioning import Encoding
from chaperone_common.token_tree import common_prefix


class Encodings:
    """Encodings by the tokens of their prompts, within a budget of bytes; the least recently used one goes first.

    A row depends on no later token, so prompts that begin alike share rows.
    """

    def __init__(self, width: int, budget_bytes: int) -> None:
        """Keep rows of `width` numbers."""
        self._width = width
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[int, ...], Encoding] = OrderedDict()

    def longest(self, token_ids: Sequence[int]) -> Encoding:
        """Return the rows that are known of the first tokens; none if no kept prompt begins with them."""
        wanted = tuple(token_ids)
        shared, best = max(((common_prefix(kept, wanted), kept) for kept in self._kept), default=(0, ()))
        if not shared:
            return Encoding.empty(self._width)
        self._kept.move_to_end(best)
        return self._kept[best].between(0, shared)

    def keep(self, token_ids: Sequence[int], encoding: Encoding) -> None:
        """Keep the rows of a prompt's first tokens, one for each of `token_ids`. Prompts that it begins with go."""
        new = tuple(token_ids)
        for kept in [kept for kept in self._kept if new[: len(kept)] == kept]:
            del self._kept[kept]
        self._kept[new] = encoding
        while sum(kept.nbytes for kept in self._kept.values()) > self._budget_bytes:
            self._kept.popitem(last=False)
