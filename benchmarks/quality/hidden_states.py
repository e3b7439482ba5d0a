"""The last hidden states of the device's model: its view of a text before it scores the next token.

The exported graph is cut before the matrix that turns them into scores, and reads a whole text in one forward. The
committed results `results/gates/*.json` have been made with it; ADR 6 records the outcome.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from chaperone_common.errors import ModelCorrupt
from edge_client.model.onnx_cache import CONDITIONING, PAST

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # the library reads it when it is imported
import onnxruntime

_SCORING = ("MatMul", "MatMulNBits", "Gemm")


class HiddenStates:
    """The device's model without the end of its graph."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Load the graph; raise ModelCorrupt unless one matrix product makes the scores."""
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        last = next((node for node in model.graph.node if "logits" in node.output), None)
        if last is None or last.op_type not in _SCORING:
            made_by = "nothing" if last is None else last.op_type
            raise ModelCorrupt(
                f"{folder / 'model.onnx'}: logits are made by {made_by}, not one of {', '.join(_SCORING)}; convert it "
                "with `chaperone-cloud models pull`"
            )
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.input[0]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._nothing_read = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), dtypes[value.type])
            for value in self._session.get_inputs()
            if value.name.startswith(PAST)
        }
        self._nothing_read |= {  # texts are read without an encoding
            value.name: np.zeros((1, 1, value.shape[2]), np.float32)
            for value in self._session.get_inputs()
            if value.name == CONDITIONING
        }

    def before(self, token_ids: Sequence[int], prompt: Sequence[int]) -> NDArray[np.float32]:
        """Return the states from which each token after a prompt was scored, [tokens, width]."""
        text = np.array([[*prompt, *token_ids[:-1]]], np.int64)
        fed = {"input_ids": text, "attention_mask": np.ones_like(text), **self._nothing_read}
        [states] = self._session.run(None, fed)
        before: NDArray[np.float32] = states[0, len(prompt) - 1 :].astype(np.float32)
        return before
