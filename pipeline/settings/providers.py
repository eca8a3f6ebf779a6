"""The sections of who embeds for money: OpenAI online, its Batch API, and what may be spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from pipeline.settings.base import Section

Provider = Literal["local", "openai", "openai_batch", "auto"]

# Of the Batch API, for embeddings: what one batch may hold.
MAX_BATCH_INPUTS = 50_000
MAX_BATCH_BYTES = 200_000_000
# Of the online API: what one request may hold.
MAX_REQUEST_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000

_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(Section):
    """US dollars for a million tokens. batch: as online, where nothing is said."""

    online: _Usd = 0.0
    batch: _Usd = 0.0

    @model_validator(mode="before")
    @classmethod
    def _batch_as_online(cls, given: Any) -> Any:
        if isinstance(given, dict) and "online" in given:
            return {"batch": given["online"], **given}
        return given


# OpenAI's list of 2025; what it charges changes, and so can these.
PRICES = {
    "text-embedding-3-small": Price(online=0.02, batch=0.01),
    "text-embedding-3-large": Price(online=0.13, batch=0.065),
    "text-embedding-ada-002": Price(online=0.10, batch=0.05),
}


class OpenAISettings(Section):
    api_key: SecretStr = Field(SecretStr(""), description="the key; empty: OpenAI is not used")
    base_url: str = Field(
        "https://api.openai.com/v1", description="OpenAI's, or that of any server that speaks its protocol"
    )
    organization: str = Field("", description="the organization that pays, where the key belongs to several")
    project: str = Field("", description="the project that pays, where the key belongs to several")
    model: str = Field("text-embedding-3-small", description="the model of new collections of this provider")
    dimensions: int | None = Field(
        None, ge=1, le=65_536, description="of its vectors; none: the model's own (text-embedding-3-small: 1,536)"
    )
    max_tokens: int = Field(8191, ge=8, description="tokens of one text, at most; what is longer is split, never cut")
    chunk_tokens: int = Field(
        512,
        ge=8,
        description="tokens of a chunk, where section chunking says nothing: a model's own limit is a chapter",
    )
    tokenizer: Path | None = Field(
        None,
        description="tokenizer.json of a model that is not OpenAI's; none: OpenAI's own count for its models, and for "
        "others the bytes of the text, which are never fewer than its tokens",
    )
    same_as: dict[str, str] = Field(
        {},
        description="models of this server that are a local one: `served name` -> local name. Collections of that "
        "local model can then be embedded either way; the vectors are compared before the first use",
    )
    timeout: float = Field(60.0, gt=0, description="seconds for one request")
    requests_per_minute: int | None = Field(
        None, ge=1, description="of the whole cluster; none: as the server's answers say, and 500 before the first"
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="of the whole cluster; none: as the server's answers say, and 1,000,000 before the first",
    )
    search_share: float = Field(
        0.05, ge=0, le=0.9, description="of what may be asked for at once, this part is kept for search queries"
    )
    in_flight: int = Field(10, ge=1, le=256, description="requests that one worker has under way at once, at most")
    request_inputs: int = Field(
        MAX_REQUEST_INPUTS, ge=1, le=MAX_REQUEST_INPUTS, description="texts of one request, at most"
    )
    request_tokens: int = Field(
        MAX_REQUEST_TOKENS, ge=1, le=MAX_REQUEST_TOKENS, description="tokens of one request, at most"
    )
    target_seconds: float = Field(
        1.0, gt=0, description="seconds one request should take; its size and how many are under way adapt to it"
    )
    local_share: float = Field(
        0.1, gt=0, le=1, description="of the limits, what each process may use by itself while Redis is away"
    )
    patience_seconds: float = Field(
        60.0, ge=0, description="seconds that one piece of work waits for a limit before it is handed back"
    )
    batch: Literal["auto", "on", "off"] = Field(
        "auto", description="whether the server has the Batch API; auto: OpenAI's own has, others do not"
    )


class OpenAIBatchSettings(Section):
    inputs: int = Field(MAX_BATCH_INPUTS, ge=1, le=MAX_BATCH_INPUTS, description="texts of one batch, at most")
    bytes: int = Field(MAX_BATCH_BYTES, ge=10_000, le=MAX_BATCH_BYTES, description="bytes of its file, at most")
    enqueued_tokens: int = Field(
        3_000_000, ge=1, description="tokens in unfinished batches, at most: a limit of the account (its tier)"
    )
    creates_per_hour: int = Field(2000, ge=1, description="batches begun in an hour, at most")
    linger_seconds: float = Field(120.0, ge=0, description="seconds that texts wait for others to share a batch with")
    window_seconds: float = Field(86_400.0, gt=0, description="seconds within which the server promises an end")
    margin_seconds: float = Field(
        1800.0, ge=0, description="seconds before `need_by` when what is not done goes online instead"
    )
    poll_seconds: float = Field(
        10.0, gt=0, description="seconds before the first look at a batch; half as long again each time"
    )
    poll_most_seconds: float = Field(300.0, gt=0, description="seconds between two looks, at most")
    grace_seconds: float = Field(
        120.0,
        ge=0,
        description="seconds for a batch to show up whose creation was not answered, before it is asked again",
    )
    harvest_lines: int = Field(500, ge=1, le=5000, description="lines of a result that are stored in one transaction")
    keep_files: bool = Field(False, description="leave the files at the server, which deletes them after 30 days")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="whsec_..., of the webhook that tells of finished batches; a hint, polling goes on"
    )


class CostSettings(Section):
    prices: dict[str, Price] = Field(
        PRICES,
        description="US dollars for a million tokens, by model, beside these; a model that is not there costs nothing",
    )
    month_usd: float = Field(0.0, ge=0, description="spent in a calendar month (UTC) by all, at most; 0: no limit")
    tenant_month_usd: float = Field(0.0, ge=0, description="spent in a month by one tenant, at most; 0: no limit")
    job_usd: float = Field(0.0, ge=0, description="spent by one job that says no `max_cost`, at most; 0: no limit")
    local_seconds_most: float = Field(
        3600.0,
        ge=0,
        description="`auto` embeds here what takes no longer than this, where the very model is here and nothing says "
        "when it is needed; so long it is taken to take where nobody has measured it",
    )

    @field_validator("prices")
    @classmethod
    def _beside_known(cls, given: dict[str, Price]) -> dict[str, Price]:
        return {**PRICES, **given}
