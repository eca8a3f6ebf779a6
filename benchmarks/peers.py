"""The peers: other people's pipelines, in an environment of their own, run one process a measurement.

`benchmarks/peers.lock` (made from `peers.in` as `scripts/lock` makes ours, with ours as constraints) is installed at
the first use into `.venv-peers` of this checkout. FastEmbed, ONNX Runtime and the tokenizer are the very versions that
Millrace runs on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOCK = HERE / "peers.lock"
ENVIRONMENT = HERE.parent / ".venv-peers"
STAMP = ENVIRONMENT / "installed"
PATIENCE_SECONDS = 1800.0

PACKAGES = ("llama-index-core", "llama-index-embeddings-fastembed", "haystack-ai", "fastembed-haystack", "fastembed",
            "onnxruntime", "tokenizers")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is asked. mode: "defaults" (read, split, embed and store the pages its own way) or "chunks" (embed
    and store ours). models: FastEmbed's cache directory. pages: a directory. chunks: a file with a JSON list of texts.
    workers: its own option for working in parallel; 0: its default, which is none."""

    mode: str
    models: Path
    pages: Path
    chunks: Path
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """seconds: of the work, the model being loaded and warm. cpu_seconds: of its processes in that time. texts: per
    embedding, what the model was given that is not of the page (a file's name, say), and the text of the page."""

    seconds: float
    cpu_seconds: float
    texts: tuple[tuple[str, str], ...]


def models(model: Path, directory: Path) -> Path:
    """A cache directory of FastEmbed's in which the model of this directory is all-MiniLM-L6-v2: whoever asks for that
    by name, as everybody does, gets the very files that Millrace runs."""
    directory.mkdir()
    (directory / "fast-all-MiniLM-L6-v2").symlink_to(model.resolve())
    return directory


def run(peer: str, job: Job, directory: Path) -> Answer:
    """Runs benchmarks/peer_<peer>.py to its end. Raises RuntimeError with what it said where it fails."""
    python = installed()
    asked, answered = directory / "job.json", directory / "answer.json"
    asked.write_text(json.dumps({name: _plain(getattr(job, name)) for name in Job.__slots__}), "utf-8")
    done = subprocess.run(
        [str(python), "-P", str(HERE / f"peer_{peer}.py"), str(asked), str(answered)],
        env=_environment(job.models),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{peer} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answer = json.loads(answered.read_text("utf-8"))
    return Answer(answer["seconds"], answer["cpu_seconds"], tuple((before, text) for before, text in answer["texts"]))


def versions() -> dict[str, str]:
    """What the peers are made of."""
    ask = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {PACKAGES!r}}}))"
    said = subprocess.run([str(installed()), "-P", "-c", ask], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


def installed() -> Path:
    """The Python of the peers' environment; made now where it is missing or of another lock."""
    python = ENVIRONMENT / "bin" / "python"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if python.exists() and STAMP.exists() and STAMP.read_text("utf-8") == wanted:
        return python
    sys.stderr.write(f"installing the peers into {ENVIRONMENT}\n")
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    for command in _installation(python):
        # What is said goes to the terminal's side: standard output is for the figures.
        subprocess.run(command, check=True, stdout=sys.stderr)
    STAMP.write_text(wanted, "utf-8")
    return python


def _installation(python: Path) -> Sequence[Sequence[str]]:
    requirements = ["--require-hashes", "--no-deps", "-r", str(LOCK)]
    if uv := shutil.which("uv"):
        # copy: nltk, which a peer needs, refuses files that are hard links.
        install = [uv, "pip", "install", "--quiet", "--link-mode=copy", "--python", str(python)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(ENVIRONMENT)], [*install, *requirements]]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [[sys.executable, "-m", "venv", str(ENVIRONMENT)], [*install, *requirements]]


def _environment(models: Path) -> Mapping[str, str]:
    """Ours, without Millrace's settings; a peer has all it needs and asks no hub and no collector of usage data."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PYTHON"))}
    return {
        **ours,
        "FASTEMBED_CACHE_PATH": str(models),
        "HF_HUB_OFFLINE": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "ANONYMIZED_TELEMETRY": "False",
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
