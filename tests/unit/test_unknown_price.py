"""A model whose price nobody knows is not bought from OpenAI."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.assembly import Services
from pipeline.errors import InvalidRequest
from pipeline.providers import Asked, planned
from pipeline.settings import load_settings

NEW = "text-embedding-4-small"


def services(home: Path, **openai: object) -> Services:
    return Services(load_settings(home=home, openai={"api_key": "sk-of-nobody", **openai}))


def test_a_model_without_a_price_is_refused_at_openai_and_is_free_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"the price of text-embedding-4-small is not known.*cost\.prices"):
        planned(services(tmp_path), None, Asked("openai", NEW, 512))
    own = services(tmp_path, base_url="http://embeddings.lan:8000/v1")
    assert planned(own, None, Asked("openai", NEW, 512))[1].name == NEW
    assert planned(services(tmp_path), None, Asked("openai"))[1].name == "text-embedding-3-small"
