"""The logits of a device's model along a text, read in every way that a generation reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_client.model.onnx_sequence import OnnxSequence


async def scores_along(sequence: OnnxSequence, text: list[int], rewound_to: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Return the logits [tokens, vocabulary], and the rows from `rewound_to` on, fed one by one as text and branch."""
    whole = [step.logits.copy() async for step in sequence.read(text)]
    sequence.rewind(rewound_to)
    sequence.fork(1, rewound_to)
    rewound, branch = [], []
    for token_id in text[rewound_to:]:
        rows = await sequence.step_rows({0: token_id, 1: token_id})
        rewound.append(rows[0].logits.copy())
        branch.append(rows[1].logits.copy())
    sequence.close()
    return np.array(whole), np.array(rewound), np.array(branch)
