"""A device model of standard ONNX operators: Optimum exports the graph, ONNX Runtime's quantiser rounds its matrices.

The usual export uses operators of ONNX Runtime alone. This one uses `DequantizeLinear` with blocks, of opset 21. Its
graph returns the keys and values of all tokens, where the usual one writes into the buffers that it reads.

`quantize_dynamic`, which rounds the activations as well, was tried and not taken: it has one scale for all tokens that
are read together, so a token's logits depended on the tokens read with it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.quant_utils import QuantFormat
from optimum.exporters.onnx import main_export

from chaperone_common.artefacts.manifest import KV_METADATA, KV_RETURNED
from chaperone_common.artefacts.registry import PortableRecipe
from chaperone_common.errors import ModelError

_STANDARD_DOMAINS = {"", "ai.onnx"}


def export_portable(weights: Path, built: Path, recipe: PortableRecipe) -> None:
    """Write `model.onnx` and `model.onnx.data` into `built`, from a folder of weights.

    Errors of the libraries pass through.
    """
    exported = built / "exported"
    logging.getLogger("optimum").setLevel(logging.ERROR)
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)  # it reports each operator
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of torch's tracing, which the comparison of our tests covers
        main_export(
            str(weights),
            output=exported,
            task="text-generation-with-past",
            device="cpu",
            dtype="fp32",
            do_validation=False,
            library_name="transformers",
        )
        quantised = _quantised(onnx.load(str(exported / "model.onnx")), recipe)
    foreign = {node.domain for node in quantised.graph.node} - _STANDARD_DOMAINS
    if foreign:
        raise ModelError(f"the exported graph has operators of {', '.join(sorted(foreign))}, which are not standard")
    onnx.helper.set_model_props(quantised, {KV_METADATA: KV_RETURNED})
    onnx.save(
        quantised,
        str(built / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
    )


def _quantised(model: onnx.ModelProto, recipe: PortableRecipe) -> onnx.ModelProto:
    """Return the graph with its constant matrices in 4 bits, each block with a scale and a zero point."""
    config = DefaultWeightOnlyQuantConfig(
        block_size=recipe.block_size, is_symmetric=False, quant_format=QuantFormat.QDQ, op_types_to_quantize=("MatMul",)
    )
    quantiser = MatMulNBitsQuantizer(
        model, block_size=recipe.block_size, is_symmetric=False, quant_format=QuantFormat.QDQ, algo_config=config
    )
    quantiser.process()
    quantised: onnx.ModelProto = quantiser.model.model
    return quantised
