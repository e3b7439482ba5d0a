"""What the device's model makes of a text before it scores the next token: its last hidden states.

The exported graph is cut off before the matrix that turns them into scores, and reads a whole text in one forward.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from chaperone_common.errors import ModelCorrupt
from edge_client.model.onnx_cache import PAST

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when the library is loaded
import onnxruntime

_SCORING = ("MatMul", "MatMulNBits", "Gemm")


class HiddenStates:
    """The device's model without the end of its graph."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Raises ModelCorrupt where the scores are not made by one product with a matrix."""
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

    def before(self, token_ids: Sequence[int], prompt: Sequence[int]) -> NDArray[np.float32]:
        """Those that each of these tokens behind a prompt was scored from, [tokens, width]."""
        text = np.array([[*prompt, *token_ids[:-1]]], np.int64)
        fed = {"input_ids": text, "attention_mask": np.ones_like(text), **self._nothing_read}
        [states] = self._session.run(None, fed)
        told: NDArray[np.float32] = states[0, len(prompt) - 1 :].astype(np.float32)
        return told
