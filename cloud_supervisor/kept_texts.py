"""The texts of sessions that have ended, so that the next turn of a conversation need not send them again."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from chaperone_common.errors import PrefixNotFound
from chaperone_common.frames import Open
from chaperone_common.session.prefixes import completed
from chaperone_common.types import SessionId
from cloud_supervisor.admission import SessionKey


class KeptTexts:
    """Texts by tenant and session, the last ones that ended.

    If there are too many, the tenant with the most tokens loses its oldest one.
    """

    def __init__(self, most: int, most_tokens: int) -> None:
        """Keep up to `most` texts, of `most_tokens` tokens together; 0 texts keep none."""
        self._most = most
        self._most_tokens = most_tokens
        self._texts: dict[str, dict[str, array[int]]] = {}  # by tenant and session, oldest first; no tenant has none
        self._tokens: Counter[str] = Counter()  # by tenant

    def keep(self, key: SessionKey, token_ids: Sequence[int], *, in_place_of: SessionKey | None = None) -> None:
        """Keep the text of a session that ends, in place of that of the turn before."""
        self._forget(key)
        if in_place_of is not None:
            self._forget(in_place_of)
        if len(token_ids) > self._most_tokens:
            return
        self._texts.setdefault(key.tenant, {})[key.session_id] = array("I", token_ids)
        self._tokens[key.tenant] += len(token_ids)
        while sum(map(len, self._texts.values())) > self._most or self._tokens.total() > self._most_tokens:
            [(tenant, _)] = self._tokens.most_common(1)
            self._forget(SessionKey(tenant, SessionId(next(iter(self._texts[tenant])))))

    def completed(self, tenant: str, opening: Open) -> Open:
        """Return an Open with its whole prompt; raises PrefixNotFound if the text that it refers to is not kept."""
        if opening.prefix is None:
            return opening
        whole = completed(opening, self._texts.get(tenant, {}).get(opening.prefix.session_id))
        if whole is None:
            raise PrefixNotFound(
                f"prefix: this cloud does not hold these {opening.prefix.length} tokens; send the whole prompt"
            )
        return whole

    def _forget(self, key: SessionKey) -> None:
        texts = self._texts.get(key.tenant, {})
        text = texts.pop(key.session_id, None)
        if text is None:
            return
        self._tokens[key.tenant] -= len(text)
        if not texts:
            del self._texts[key.tenant], self._tokens[key.tenant]
