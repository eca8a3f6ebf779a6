"""Which model is meant, and whose: what OpenAI's models are described by. Nothing is loaded, and nobody is asked."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from pipeline.document import canonical, digest
from pipeline.embedding.base import ModelSpec
from pipeline.errors import InvalidSettings, ModelUnavailable
from pipeline.settings import OpenAISettings

PROVIDER = "openai"
# What the published models answer with where nothing else is asked for.
NATIVE_DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
# These cannot be asked for fewer.
_FIXED = frozenset({"text-embedding-ada-002"})
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Enough of a hash to tell accounts apart, and too little to guess a key with.
_ACCOUNT_CHARACTERS = 16


def normalised_url(base_url: str) -> str:
    """The one form of an endpoint: no credentials, no query, no default port, no slash at the end.

    Raises InvalidSettings for what is no http(s) URL; the message shows nothing of it.
    """
    wrong = InvalidSettings(
        "MILLRACE_OPENAI__BASE_URL must be http(s)://host[:port]/path, as https://api.openai.com/v1"
    )
    try:
        parts = urlsplit(base_url.strip())
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise wrong from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not host:
        raise wrong
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[scheme]:
        place += f":{port}"
    return urlunsplit((scheme, place, parts.path.rstrip("/"), "", ""))


def is_openai(settings: OpenAISettings) -> bool:
    """Whether the server is OpenAI's own, of whichever region."""
    host = urlsplit(normalised_url(settings.base_url)).hostname or ""
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def account(settings: OpenAISettings) -> str:
    """Who pays, in a form that may be shown: organization and project; else a part of the key's hash."""
    if settings.organization or settings.project:
        return f"{settings.organization}/{settings.project}"
    return digest("account", settings.api_key.get_secret_value()).hex()[:_ACCOUNT_CHARACTERS]


def openai_spec(settings: OpenAISettings, model: str | None = None, dimensions: int | None = None) -> ModelSpec:
    """The spec of a model of this endpoint; by default the one that the settings name.

    dimensions: None: those of the settings, where the model is theirs too; else the model's own.
    Raises InvalidSettings where nobody says how many dimensions the model has, or where it cannot have so many.
    """
    name = model or settings.model
    if dimensions is None and name == settings.model:
        dimensions = settings.dimensions
    native = NATIVE_DIMENSIONS.get(name)
    if dimensions is None and native is None:
        raise InvalidSettings(
            f"nothing here knows how many dimensions {name} has; set MILLRACE_OPENAI__DIMENSIONS (or --dimensions)"
        )
    if native is not None and dimensions is not None and not _can_have(name, dimensions, native):
        most = "" if name in _FIXED else " at most"
        raise InvalidSettings(f"{name} cannot make vectors of {dimensions} dimensions; it has {native}{most}")
    return ModelSpec(
        name=name,
        provider=PROVIDER,
        dimensions=dimensions or native or 0,
        max_tokens=settings.max_tokens,
        pooling="remote",
        normalize=True,
        precision="float32",
        revision=normalised_url(settings.base_url),
    )


def _can_have(name: str, dimensions: int, native: int) -> bool:
    return dimensions == native if name in _FIXED else dimensions <= native


def served_name(spec: ModelSpec, settings: OpenAISettings) -> str:
    """Under which name the server has this model: its own, or the one that `openai.same_as` gives to a local model.

    Raises ModelUnavailable where the model is another endpoint's, or a local one that the server is not said to have.
    """
    if spec.provider == PROVIDER:
        endpoint = normalised_url(settings.base_url)
        if spec.revision != endpoint:
            raise ModelUnavailable(
                f"the collection was made with {spec.name} of {spec.revision}; MILLRACE_OPENAI__BASE_URL is {endpoint}"
            )
        return spec.name
    for served, local in settings.same_as.items():
        if local.lower() == spec.name.lower():
            return served
    raise ModelUnavailable(
        f"{spec.name} is a model of this machine; where {normalised_url(settings.base_url)} has the very same one, "
        f'say so: MILLRACE_OPENAI__SAME_AS={{"its name there": "{spec.name}"}}'
    )


def is_served(spec: ModelSpec, settings: OpenAISettings) -> bool:
    """Whether the endpoint of the settings has this model."""
    try:
        served_name(spec, settings)
    except ModelUnavailable:
        return False
    return True


def spec_hash(spec: ModelSpec, settings: OpenAISettings) -> bytes:
    """32 bytes that are equal where two texts may share a remote batch: model, endpoint and account."""
    described = {
        "spec": spec.to_json(),
        "served": served_name(spec, settings),
        "endpoint": normalised_url(settings.base_url),
        "account": account(settings),
    }
    return digest("remote batch", canonical(described))


def limit_scope(spec: ModelSpec, settings: OpenAISettings) -> str:
    """Whose limits a request counts against: endpoint, account and model, as part of a key in Redis."""
    parts = (normalised_url(settings.base_url), account(settings), served_name(spec, settings))
    return digest("limits", *parts).hex()[:32]
