"""A stand-in for OpenAI's servers: embeddings, files and batches over real HTTP, with state that survives SIGKILL.

    with running(directory) as server:
        client = openai.OpenAI(base_url=server.url, api_key=server.key)

`server.control` makes faults, moves the clock, and tells what was asked and what was billed.
"""

from __future__ import annotations

from openai_server.control import Billed, Control, Request
from openai_server.handle import OpenAIServer, running

__all__ = ["Billed", "Control", "OpenAIServer", "Request", "running"]
