"""The forward pass of a BERT encoder as an ONNX graph, from its safetensors.

Inputs `input_ids`, `attention_mask`, `token_type_ids`: int64[batch, tokens]; output `last_hidden_state`:
float32[batch, tokens, hidden]. Opset 20 has the two operators that BERT is made of, LayerNormalization and Gelu.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

OPSET = 20
IR_VERSION = 10
LAYERS = 6
HEADS = 12
HIDDEN = 384
EPSILON = 1e-12
# Added to the attention scores of padding; far below any real score, so that its softmax is 0 in float32.
MASKED = -1e4


def write_onnx(weights: Path, target: Path, *, quantized: bool) -> None:
    """Writes the model of the weights; quantized: MatMul weights as int8 per channel, activations as they come."""
    model = _Bert(load_file(weights)).model()
    onnx.checker.check_model(model)
    if not quantized:
        onnx.save(model, target)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        whole = Path(scratch) / target.name
        onnx.save(model, whole)
        quantize_dynamic(whole, target, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])


class _Bert:
    """Collects nodes and constants; every method returns the name of the value that it adds."""

    def __init__(self, weights: dict[str, NDArray[Any]]) -> None:
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self) -> Any:
        hidden = self.embeddings()
        mask = self.attention_mask()
        self.constant("heads", np.array([0, 0, HEADS, HIDDEN // HEADS], np.int64))
        self.constant("joined", np.array([0, 0, HIDDEN], np.int64))
        self.constant("scale", np.array(np.sqrt(HIDDEN // HEADS), np.float32))
        for layer in range(LAYERS):
            hidden = self.layer(
                hidden, mask, f"encoder.layer.{layer}", "last_hidden_state" if layer == LAYERS - 1 else ""
            )
        graph = helper.make_graph(
            self.nodes,
            "bert",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask", "token_type_ids")
            ],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", HIDDEN])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        return model

    def embeddings(self) -> str:
        words = self.node("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"])
        types = self.node("Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"])
        tokens = self.node("Shape", ["input_ids"], start=1, end=2)
        # Slice rather than Gather over Range: ONNX Runtime rewrites the latter wrongly.
        first = self.constant("first", np.array([0], np.int64))
        positions = self.node("Slice", [self.weight("embeddings.position_embeddings.weight"), first, tokens])
        summed = self.residual(self.node("Add", [words, types]), positions)
        return self.layer_norm(summed, "embeddings.LayerNorm")

    def attention_mask(self) -> str:
        """[batch, 1, 1, tokens]: 0 where there is a token, MASKED where there is padding."""
        present = self.node("Cast", ["attention_mask"], to=TensorProto.FLOAT)
        spread = self.node("Unsqueeze", [present, self.constant("axes", np.array([1, 2], np.int64))])
        absent = self.node("Sub", [self.constant("one", np.array(1, np.float32)), spread])
        return self.node("Mul", [absent, self.constant("masked", np.array(MASKED, np.float32))])

    def layer(self, hidden: str, mask: str, prefix: str, output: str) -> str:
        query = self.heads(self.linear(hidden, f"{prefix}.attention.self.query"), [0, 2, 1, 3])
        key = self.heads(self.linear(hidden, f"{prefix}.attention.self.key"), [0, 2, 3, 1])
        value = self.heads(self.linear(hidden, f"{prefix}.attention.self.value"), [0, 2, 1, 3])
        scores = self.node("Add", [self.node("Div", [self.node("MatMul", [query, key]), "scale"]), mask])
        context = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value])
        joined = self.node("Reshape", [self.node("Transpose", [context], perm=[0, 2, 1, 3]), "joined"])
        attended = self.residual(self.linear(joined, f"{prefix}.attention.output.dense"), hidden)
        middle = self.layer_norm(attended, f"{prefix}.attention.output.LayerNorm")
        wide = self.node("Gelu", [self.linear(middle, f"{prefix}.intermediate.dense")])
        narrow = self.residual(self.linear(wide, f"{prefix}.output.dense"), middle)
        return self.layer_norm(narrow, f"{prefix}.output.LayerNorm", output)

    def residual(self, computed: str, passed: str) -> str:
        # Sum rather than Add: of Add and LayerNormalization ONNX Runtime makes one operation, which on a CPU is slower
        # than the two by as much as a fifth of the whole int8 model.
        return self.node("Sum", [computed, passed])

    def heads(self, value: str, order: list[int]) -> str:
        return self.node("Transpose", [self.node("Reshape", [value, "heads"])], perm=order)

    def linear(self, value: str, prefix: str) -> str:
        weight = self.constant(f"{prefix}.weight.T", self.weights[f"{prefix}.weight"].T)
        return self.node("Add", [self.node("MatMul", [value, weight]), self.weight(f"{prefix}.bias")])

    def layer_norm(self, value: str, prefix: str, output: str = "") -> str:
        inputs = [value, self.weight(f"{prefix}.weight"), self.weight(f"{prefix}.bias")]
        return self.node("LayerNormalization", inputs, output, axis=-1, epsilon=EPSILON)

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output
