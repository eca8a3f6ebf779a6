"""The client's errors in our words, without a word of the key; and the specs of models."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from pipeline import errors
from pipeline.embedding.base import ModelSpec
from pipeline.embedding.openai.client import Failure, open_client, scrubbed, told, translate, translated
from pipeline.embedding.openai.spec import is_openai, limit_scope, normalised_url, openai_spec, served_name, spec_hash
from pipeline.embedding.openai.tokens import count_tokens, counts_exactly
from pipeline.settings import OpenAISettings

KEY = "sk-proj-VERY-secret-0123456789"
WHERE = "https://api.openai.com/v1/embeddings"


def request() -> httpx2.Request:
    return httpx2.Request("POST", WHERE, headers={"authorization": f"Bearer {KEY}"})


def status_error(status: int, headers: dict[str, str] | None = None, **error: str | None) -> openai.APIStatusError:
    """As the client makes it of an answer."""
    client = openai.OpenAI(api_key=KEY, max_retries=0)
    response = httpx2.Response(status, headers=headers, json={"error": error}, request=request())
    return client._make_status_error_from_response(response)


def failure_of(error: Exception) -> Failure:
    return translate(error, "embedding 3 texts")


@pytest.mark.parametrize(
    ("status", "code", "expected", "lost"),
    [
        (400, None, errors.InvalidRequest, False),
        (401, "invalid_api_key", errors.KeyRejected, False),
        (402, None, errors.QuotaExhausted, False),
        (403, None, errors.KeyRejected, False),
        (404, "model_not_found", errors.ModelUnavailable, False),
        (404, None, errors.ModelUnavailable, False),
        (408, None, errors.ProviderUnavailable, True),
        (409, None, errors.ProviderUnavailable, True),
        (413, None, errors.InvalidRequest, False),
        (422, None, errors.InvalidRequest, False),
        (429, "rate_limit_exceeded", errors.ProviderLimited, False),
        (429, "insufficient_quota", errors.QuotaExhausted, False),
        (429, "billing_hard_limit_reached", errors.QuotaExhausted, False),
        (500, None, errors.ProviderUnavailable, False),
        (502, None, errors.ProviderUnavailable, True),
        (503, None, errors.ProviderUnavailable, False),
        (504, None, errors.ProviderUnavailable, True),
    ],
)
def test_every_status_becomes_an_error_of_ours(
    status: int, code: str | None, expected: type[errors.MillraceError], lost: bool
) -> None:
    failure = failure_of(status_error(status, code=code, message="no"))

    assert type(failure.error) is expected
    assert failure.lost is lost
    assert "embedding 3 texts" in str(failure.error)


@pytest.mark.parametrize(
    ("cause", "lost"),
    [
        (httpx2.ConnectError("refused"), False),
        (httpx2.ConnectTimeout("too long"), False),
        (httpx2.ReadTimeout("too long"), True),
        (httpx2.ReadError("reset"), True),
        (httpx2.RemoteProtocolError("peer closed"), True),
        (None, True),
    ],
)
def test_a_request_is_lost_unless_it_was_never_sent(cause: Exception | None, lost: bool) -> None:
    for error in (openai.APIConnectionError(request=request()), openai.APITimeoutError(request=request())):
        error.__cause__ = cause
        failure = failure_of(error)

        assert type(failure.error) is errors.ProviderUnavailable
        assert failure.lost is lost


def test_every_class_of_the_client_is_mapped() -> None:
    # Given every error class of the client that can be raised by a request
    found = {
        kind for kind in list(vars(openai).values()) if isinstance(kind, type) and issubclass(kind, openai.OpenAIError)
    }
    assert openai.RateLimitError in found

    for kind in found:
        error: Any = kind.__new__(kind)
        Exception.__init__(error, "something")
        if issubclass(kind, openai.APIError):
            openai.APIError.__init__(error, "something", request(), body=None)
        if issubclass(kind, openai.APIStatusError | openai.APIResponseValidationError):
            error.response = httpx2.Response(getattr(kind, "status_code", 418), request=request())
            error.status_code = error.response.status_code
        # Then it is one of ours
        assert isinstance(failure_of(error).error, errors.MillraceError), kind


def test_the_seconds_that_a_server_asks_to_wait_are_kept() -> None:
    error = failure_of(status_error(429, {"retry-after-ms": "1500"}, message="slow down")).error

    assert isinstance(error, errors.ProviderLimited)
    assert error.seconds == 1.5


def test_a_parameter_that_is_refused_is_no_fault_of_a_text() -> None:
    assert failure_of(status_error(400, param="dimensions", message="no")).whole
    assert not failure_of(status_error(400, param="input[7]", message="no")).whole


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("words", [f"Incorrect API key: {KEY}.", "Incorrect: sk-proj-VERY***6789", f"Bearer {KEY}"])
def test_no_error_repeats_the_key_or_a_part_of_it(status: int, words: str) -> None:
    with pytest.raises(errors.MillraceError) as raised, translated("embedding"):
        raise status_error(status, message=words, code="invalid_api_key" if status == 401 else None)

    assert "VERY" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_any_error_that_is_not_of_the_client_stays_what_it_is() -> None:
    with pytest.raises(KeyError), translated("embedding"):
        raise KeyError("ours")
    with pytest.raises(errors.LeaseLost), translated("embedding"):
        raise errors.LeaseLost
    with pytest.raises(errors.ProviderUnavailable, match="makes no sense"), translated("embedding"):
        raise ValueError("No embedding data received")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"message": "no", "code": "insufficient_quota"}, errors.QuotaExhausted),
        ({"message": "no", "type": "invalid_api_key"}, errors.KeyRejected),
        ({"message": "no", "code": 429}, errors.ProviderLimited),
        ({"message": "no"}, errors.ProviderUnavailable),
    ],
)
def test_an_error_with_status_200_is_told_by_its_code(
    body: dict[str, str], expected: type[errors.MillraceError]
) -> None:
    assert type(told(body, "embedding").error) is expected


def test_words_that_look_like_keys_are_taken_out() -> None:
    assert scrubbed("key sk-abc***def and Bearer xyz.abc and hunter22", "hunter22") == "key *** and *** and ***"


# -- opening ---------------------------------------------------------------------------------------------------------


def settings(**values: object) -> OpenAISettings:
    return OpenAISettings.model_validate({"api_key": KEY, **values})


def test_the_client_retries_nothing_and_takes_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "somebody-elses")

    with open_client(settings(base_url="http://127.0.0.1:1/v1")) as client:
        assert client.max_retries == 0
        assert (client.api_key, client.organization, client.project) == (KEY, None, None)
        assert str(client.base_url) == "http://127.0.0.1:1/v1/"
        assert KEY not in repr(client)


def test_without_a_key_openai_is_not_asked_and_a_server_next_door_is() -> None:
    with pytest.raises(errors.KeyRejected, match="MILLRACE_OPENAI__API_KEY"):
        open_client(OpenAISettings())
    with open_client(OpenAISettings.model_validate({"base_url": "http://127.0.0.1:1/v1"})) as client:
        assert client.api_key == "none"


# -- specs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "https://api.openai.com/v1",
        "https://api.openai.com/v1/",
        "HTTPS://API.OpenAI.com:443/v1",
        "https://user:secret@api.openai.com/v1?key=secret#here",
    ],
)
def test_an_endpoint_has_one_form_without_credentials(written: str) -> None:
    assert normalised_url(written) == "https://api.openai.com/v1"


@pytest.mark.parametrize("written", ["", "api.openai.com", "ftp://secret@host", "https://host:port/v1", "https://"])
def test_what_is_no_endpoint_is_refused_and_not_shown(written: str) -> None:
    with pytest.raises(errors.InvalidSettings) as raised:
        normalised_url(written)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://x.openai.azure.com/openai/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_openais_own_servers_are_known(url: str, own: bool) -> None:
    assert is_openai(settings(base_url=url)) is own


def test_the_spec_of_a_model_names_its_endpoint() -> None:
    spec = openai_spec(settings())

    assert spec == ModelSpec(
        name="text-embedding-3-small",
        provider="openai",
        dimensions=1536,
        max_tokens=8191,
        pooling="remote",
        normalize=True,
        precision="float32",
        revision="https://api.openai.com/v1",
    )
    assert openai_spec(settings(), "text-embedding-3-large").dimensions == 3072
    assert openai_spec(settings(dimensions=256)).dimensions == 256
    # those of the settings are of the model of the settings
    assert openai_spec(settings(dimensions=256), "text-embedding-3-large").dimensions == 3072
    assert openai_spec(settings(), "nomic-embed-text", 768).dimensions == 768


def test_dimensions_that_nobody_knows_or_a_model_cannot_have_are_refused() -> None:
    with pytest.raises(errors.InvalidSettings, match=r"nomic-embed-text.*MILLRACE_OPENAI__DIMENSIONS"):
        openai_spec(settings(model="nomic-embed-text"))
    with pytest.raises(errors.InvalidSettings, match="1536 at most"):
        openai_spec(settings(dimensions=2000))
    with pytest.raises(errors.InvalidSettings, match="it has 1536"):
        openai_spec(settings(), "text-embedding-ada-002", 512)


def test_a_model_of_another_endpoint_is_refused_naming_both() -> None:
    spec = openai_spec(settings(base_url="http://there:1/v1"))

    with pytest.raises(errors.ModelUnavailable, match=r"http://there:1/v1.*http://here:2/v1"):
        served_name(spec, settings(base_url="http://here:2/v1"))


def test_who_shares_a_remote_batch_and_a_limit_is_told_by_model_endpoint_and_account() -> None:
    base = settings()
    spec = openai_spec(base)
    other_key, project = settings(api_key="sk-other"), settings(project="p")
    other_key_of_project = settings(api_key="sk-other", project="p")

    assert spec_hash(spec, base) == spec_hash(spec, settings())
    assert len({spec_hash(spec, each) for each in (base, other_key, project)}) == 3
    assert spec_hash(spec, project) == spec_hash(spec, other_key_of_project)
    assert spec_hash(openai_spec(base, dimensions=256), base) != spec_hash(spec, base)
    # One limit for all sizes of a model.
    assert limit_scope(openai_spec(base, dimensions=256), base) == limit_scope(spec, base)
    assert limit_scope(spec, base) != limit_scope(spec, other_key)
    assert KEY not in limit_scope(spec, base)


def test_openais_models_are_counted_exactly_and_others_never_too_low() -> None:
    texts = [
        "The gate decides how much water reaches the wheel.",
        "Die Mühle mahlt – 磨坊 🌾",
        "<|endoftext|>",
        "\ud83c",
    ]

    exact = count_tokens(texts, settings(), "text-embedding-3-small")
    bound = count_tokens(texts, settings(), "some-other-model")

    assert exact[0] == 10
    assert counts_exactly(settings(), "text-embedding-3-small")
    assert not counts_exactly(settings(), "some-other-model")
    assert all(upper > count for upper, count in zip(bound, exact, strict=True))
    assert bound[0] == len(texts[0]) + 2
