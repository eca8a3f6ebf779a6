"""Settings: where a value comes from, what is refused, and what is never shown."""

from __future__ import annotations

import json
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from pipeline.errors import InvalidSettings
from pipeline.settings import RUN_FILE, Section, Settings, load_settings, mask_url, read_run_file

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment without settings."""
    for name in list(os.environ):
        if name.upper().startswith("MILLRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_toml(place: Path, text: str, name: str = "millrace.toml") -> None:
    (place / name).write_text(text, "utf-8")


def write_run_file(home: Path, content: Any) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / RUN_FILE).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def sections() -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


# Where a value comes from


def test_without_anything_every_setting_has_its_default() -> None:
    settings = load_settings()
    assert settings.home == Path(".millrace")
    assert settings.qdrant.upsert_points == 256
    assert settings.postgres.url.get_secret_value() == ""


def test_the_first_source_that_has_a_value_wins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given one address in every source, each source with one setting less than the one below
    write_run_file(place / ".millrace", {"settings": {"qdrant": {"url": "grpc://run", "timeout": 1, "channels": 1}}})
    assert load_settings().qdrant.url.get_secret_value() == "grpc://run"
    write_toml(place, '[qdrant]\nurl = "grpc://toml"\ntimeout = 2\n')
    assert load_settings().qdrant.url.get_secret_value() == "grpc://toml"
    monkeypatch.setenv("MILLRACE_QDRANT__URL", "grpc://env")
    assert load_settings().qdrant.url.get_secret_value() == "grpc://env"
    # When the code passes one too, then it wins, and what it leaves out still comes from the others
    qdrant = load_settings(qdrant={"url": "grpc://code"}).qdrant
    assert (qdrant.url.get_secret_value(), qdrant.timeout, qdrant.channels) == ("grpc://code", 2.0, 1)


def test_a_config_file_can_be_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(place, "[postgres]\npool_size = 3\n")
    write_toml(place, "[postgres]\npool_size = 7\n", "other.toml")
    monkeypatch.setenv("MILLRACE_CONFIG", str(place / "other.toml"))
    assert load_settings().postgres.pool_size == 7


@pytest.mark.parametrize("source", ["code", "environment", "toml"])
def test_the_run_file_is_looked_for_in_the_home(place: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    home = place / "elsewhere"
    write_run_file(home, {"settings": {"redis": {"url": "redis://run"}}})
    given: dict[str, Any] = {}
    if source == "code":
        given["home"] = home
    elif source == "environment":
        monkeypatch.setenv("MILLRACE_HOME", str(home))
    else:
        write_toml(place, f"home = '{home}'\n")
    assert load_settings(**given).redis.url.get_secret_value() == "redis://run"


@pytest.mark.parametrize("content", ["", "{", "[]", {}, {"settings": None}, {"settings": [1]}, {"pid": 1}])
def test_a_broken_run_file_counts_as_none(place: Path, content: Any) -> None:
    write_run_file(place / ".millrace", content)
    assert load_settings().qdrant.url.get_secret_value() == ""


def test_a_home_that_is_a_file_has_no_run_file(place: Path) -> None:
    (place / "file").write_text("", "utf-8")
    assert read_run_file(place / "file") == {}
    assert read_run_file(place / "missing") == {}


def test_lists_in_the_environment_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_SOURCES__ROOTS", '["/a", "/b"]')
    assert load_settings().sources.roots == (Path("/a"), Path("/b"))


# What is refused


@pytest.mark.parametrize(
    ("environment", "setting"),
    [
        ({"MILLRACE_POSTGRES__POOL_SIZE": "none"}, "MILLRACE_POSTGRES__POOL_SIZE"),
        ({"MILLRACE_POSTGRES__POOL_SIZE": "0"}, "MILLRACE_POSTGRES__POOL_SIZE"),
        ({"MILLRACE_QDRANT__NOPE": "1"}, "MILLRACE_QDRANT__NOPE"),
        ({"MILLRACE_QDRNT__URL": "grpc://x"}, "MILLRACE_QDRNT__URL"),
        ({"MILLRACE_EMBEDDING__PRECISION": "int4"}, "MILLRACE_EMBEDDING__PRECISION"),
        ({"MILLRACE_REDIS__URL": "http://x"}, "MILLRACE_REDIS__URL"),
        ({"MILLRACE_SOURCES__ROOTS": "/a"}, "sources"),
        ({"MILLRACE_QDRANT": "no json"}, "qdrant"),
        ({"MILLRACE_CONFIG": "missing.toml"}, "MILLRACE_CONFIG"),
    ],
)
def test_a_wrong_value_or_unknown_name_in_the_environment_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], setting: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=setting):
        load_settings()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[nope]\na = 1\n", "MILLRACE_NOPE"),
        ("[qdrant]\nnope = 1\n", "MILLRACE_QDRANT__NOPE"),
        ("[qdrant]\ntimeout = 0\n", "MILLRACE_QDRANT__TIMEOUT"),
        ("[qdrant\n", r"millrace\.toml"),
    ],
)
def test_a_wrong_config_file_is_refused_by_name(place: Path, text: str, named: str) -> None:
    write_toml(place, text)
    with pytest.raises(InvalidSettings, match=named):
        load_settings()


def test_an_unknown_name_from_the_code_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="MILLRACE_NOPE"):
        load_settings(nope=1)


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_SERVICE_HOST", "10.0.0.1")  # Kubernetes, for a service called millrace
    monkeypatch.setenv("OTHER_QDRANT__URL", "x")
    assert load_settings().tenant == "default"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.tenant = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.qdrant.timeout = 1.0  # type: ignore[misc]


# What is never shown

SECRETS = {
    "postgres": {"url": f"postgresql://user:{SECRET}@host/db"},
    "redis": {"url": f"redis://:{SECRET}@host:6379/0"},
    "qdrant": {"url": f"grpc://:{SECRET}@host:6334", "api_key": SECRET},
    "flower": {"auth": f"user:{SECRET}"},
}


def test_secrets_are_masked_wherever_settings_are_printed() -> None:
    settings = load_settings(**SECRETS)
    for section in (settings, *(getattr(settings, name) for name in SECRETS)):
        shown = f"{section} {section!r} {section.model_dump()} {section.model_dump_json()}"
        assert SECRET not in shown
        assert "***" in shown


def test_secrets_are_still_there_for_who_asks_and_survive_pickling() -> None:
    settings = pickle.loads(pickle.dumps(load_settings(**SECRETS)))
    assert settings.flower.auth.get_secret_value() == f"user:{SECRET}"


def test_every_setting_that_may_hold_a_password_is_a_secret() -> None:
    for name, section in sections().items():
        for setting, field in section.model_fields.items():
            if setting in {"url", "api_key", "auth", "password", "token", "key"}:
                assert field.annotation is SecretStr, f"{name}.{setting}"


@pytest.mark.parametrize(
    "url",
    [
        f"user:{SECRET}@host/db",  # no scheme: the user would pass for one
        f"mysql://user:{SECRET}@host:1/db",
        f"http://:{SECRET}/x@host:6379",  # a slash in the password ends the host
        f"redis://:{SECRET}/x@host:6379",
        f"redis://:{SECRET}@host:port",
        SECRET,
    ],
)
def test_an_error_shows_no_password_however_the_url_is_broken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("MILLRACE_REDIS__URL", url)
    with pytest.raises(InvalidSettings, match="MILLRACE_REDIS__URL") as error:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "given", [{"api_key": [SECRET]}, {"url": {"x": SECRET}}, {"timeout": SECRET}, {"nope": SECRET}]
)
def test_an_error_shows_no_value(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings) as error:
        load_settings(qdrant=given)
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_an_unreadable_section_in_the_environment_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_QDRANT", f"{{'api_key': '{SECRET}'")
    with pytest.raises(InvalidSettings) as error:
        load_settings()
    assert SECRET not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("grpc://:key@host:6334", "grpc://:***@host:6334"),
        ("postgresql://user:key@[::1]:5432/db?x=1", "postgresql://user:***@[::1]:5432/db?x=1"),
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("https://host/@somebody", "https://host/@somebody"),
        ("redis://:ke/y@host:1", "***"),
        ("user:key@host", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


# What is described


def test_every_setting_has_a_description() -> None:
    assert len(sections()) > 5
    for name, section in sections().items():
        for setting, field in section.model_fields.items():
            assert field.description, f"{name}.{setting}"
    for name, top in Settings.model_fields.items():
        assert name in sections() or top.description, name
