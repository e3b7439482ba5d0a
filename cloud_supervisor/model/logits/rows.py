"""Rows of logits that stay on the model's device: only the few numbers that a choice needs are moved.

`sampling.choose` asks a `Distribution` for its likeliest tokens, and for those whose noise is so good that they may win
in spite of a small weight: the noise of every token is known without the logits. So the choice is the same as with all
logits, up to the rounding of the sum of all weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from chaperone_common.errors import ModelCorrupt
from chaperone_common.logprobs import ChoiceLogprobs, limited, ranked
from chaperone_common.sampling import Ids, scale

_ROWS_AT_ONCE = 8  # whose weights are summed; more of them leave a processor's cache
_LEAST_SLACK = 1e-4  # of a scaled logit: devices may round another way than NumPy


class LogitRows:
    """The logits of one forward [rows, vocabulary], and the temperature of each row."""

    def __init__(self, logits: torch.Tensor, temperatures: Sequence[float]) -> None:
        """Measure all rows together; raises ModelCorrupt if they are not numbers."""
        self.logits = logits.float()
        top = self.logits.argmax(dim=1)
        most = self.logits.gather(1, top[:, None])
        self.temperatures = [temperature or 1.0 for temperature in temperatures]
        heat = torch.tensor(self.temperatures, device=logits.device)[:, None].clamp(1e-30, 1e30)
        drawn = [row for row, temperature in enumerate(temperatures) if temperature]
        self.totals = np.ones(len(temperatures))
        if drawn:
            sums = []
            for rows in torch.tensor(drawn, device=logits.device).split(_ROWS_AT_ONCE):
                sums.append((self.logits[rows] - most[rows]).div_(heat[rows]).exp_().sum(dim=1))
            self.totals[drawn] = torch.cat(sums).cpu().numpy()
        self.tops: list[int] = top.tolist()
        self.most: NDArray[np.float32] = most[:, 0].cpu().numpy()
        if not np.isfinite(self.most).all():
            raise ModelCorrupt(
                "model: its scores are not numbers; its files may be damaged: pull it again with --force"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.tops)

    def __iter__(self) -> Iterator[LogitRow]:
        """Return the rows."""
        return (LogitRow(self, row) for row in range(len(self)))


class LogitRow:
    """One row, as a `Distribution`."""

    def __init__(self, rows: LogitRows, row: int) -> None:
        self._rows = rows
        self._logits = rows.logits[row]
        self._most = rows.most[row]
        self._temperature = rows.temperatures[row]
        self.top = rows.tops[row]
        self.total = float(rows.totals[row])
        self._second: int | None = None

    @property
    def vocabulary(self) -> int:
        return len(self._logits)

    @property
    def second(self) -> int:
        if self._second is None:
            best = self._logits[self.top].clone()
            self._logits[self.top] = -torch.inf
            self._second = int(self._logits.argmax()) if self.vocabulary > 1 else self.top
            self._logits[self.top] = best
        return self._second

    def weights(self) -> torch.Tensor:
        """Return a copy of the weights [vocabulary] of all tokens, on the model's device: 1 at the likeliest."""
        heat = min(max(self._temperature, 1e-30), 1e30)
        return ((self._logits - float(self._most)) / heat).exp()

    def best(self, count: int) -> Ids:
        """Return the ids of the `count` likeliest tokens, and of all as likely as the last of them, ascending."""
        least = self._logits.topk(count).values[-1]
        ids: Ids = (self._logits >= least).nonzero()[:, 0].cpu().numpy()
        return ids

    def logits_at(self, ids: Ids) -> NDArray[np.float64]:
        """Return the logits of some tokens."""
        picked: NDArray[np.float64] = self._logits[torch.from_numpy(ids).to(self._logits.device)].double().cpu().numpy()
        return picked

    def logprobs(self, token_id: int, count: int) -> ChoiceLogprobs:
        """Return the log-probability of a token, and those of the `count` likeliest ones; see `logprobs.measure`."""
        total = float(self._logits.logsumexp(dim=0))
        chosen = float(self._logits[token_id])
        if not count:
            return ChoiceLogprobs(limited(chosen - total))
        least = self._logits.topk(min(count, self.vocabulary)).values[-1]
        ids = (self._logits >= least).nonzero()[:, 0]
        return ranked(chosen, ids.cpu().numpy(), self._logits[ids].cpu().numpy(), total, count)

    def above(self, cut: float) -> tuple[Ids, NDArray[np.float32]]:
        least = float(self._most) + self._temperature * (math.log(cut) - _LEAST_SLACK) if cut else -math.inf
        ids = (self._logits >= least).nonzero()[:, 0].cpu().numpy()
        scaled = self.at(ids)
        kept = np.exp(scaled) >= cut
        return ids[kept], scaled[kept]

    def at(self, ids: Ids) -> NDArray[np.float32]:
        picked: NDArray[np.float32] = self._logits[torch.from_numpy(ids).to(self._logits.device)].cpu().numpy()
        return scale(picked, self._most, self._temperature)
