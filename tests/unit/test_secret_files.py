"""Secrets in files: a variable with _FILE behind it names the file, and nothing else need hold the secret."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import InvalidSettings
from pipeline.settings import Settings, load_settings
from workers.programs import program_environment

SECRETS = Path(__file__).parents[2] / "scripts" / "secrets"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and an environment without settings."""
    for name in list(os.environ):
        if name.upper().startswith("MILLRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("postgresql://millrace@db:5432/ledger", "postgresql://millrace:p%40ss%2Fw%20rd@db:5432/ledger"),
        ("postgresql://millrace:@db/ledger", "postgresql://millrace:p%40ss%2Fw%20rd@db/ledger"),
        ("postgresql://db/ledger?sslmode=require", "postgresql://:p%40ss%2Fw%20rd@db/ledger?sslmode=require"),
        ("postgresql://millrace:own@db/ledger", "postgresql://millrace:own@db/ledger"),
        ("", ""),
    ],
)
def test_a_password_goes_into_the_url_that_has_none(monkeypatch: pytest.MonkeyPatch, url: str, whole: str) -> None:
    found = loaded(monkeypatch, MILLRACE_POSTGRES__URL=url, MILLRACE_POSTGRES__PASSWORD="p@ss/w rd")
    assert found.postgres.url.get_secret_value() == whole
    assert "p@ss" not in repr(found)
    assert "%40" not in repr(found)


def test_redis_takes_its_password_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, MILLRACE_REDIS__URL="rediss://queue:6380/1", MILLRACE_REDIS__PASSWORD="word")
    assert found.redis.url.get_secret_value() == "rediss://:word@queue:6380/1"


def test_any_setting_of_a_section_can_come_from_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given files that end as `echo` and an editor leave them
    (place / "password").write_text("pass,word \n")
    (place / "auth").write_text("person:a,b:c\r\n")
    (place / "ef").write_text("77\n")
    # When variables with _FILE behind the setting's name them
    found = loaded(
        monkeypatch,
        MILLRACE_POSTGRES__URL="postgresql://millrace@db/ledger",
        MILLRACE_POSTGRES__PASSWORD_FILE=str(place / "password"),
        MILLRACE_FLOWER__AUTH_FILE="auth",
        MILLRACE_SEARCH__HNSW_EF_FILE=str(place / "ef"),
        MILLRACE_QDRANT__API_KEY_FILE="",
        MILLRACE_READY_FILE="/nowhere",
    )
    # Then they are the settings' values, without the line break and with everything else
    assert found.postgres.url.get_secret_value() == "postgresql://millrace:pass%2Cword%20@db/ledger"
    assert found.flower.auth.get_secret_value() == "person:a,b:c"
    assert found.search.hnsw_ef == 77
    assert found.qdrant.api_key.get_secret_value() == ""


def test_a_variable_that_is_there_itself_wins_over_its_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "key").write_text("from the file")
    file = {"MILLRACE_QDRANT__API_KEY_FILE": str(place / "key")}
    assert loaded(monkeypatch, MILLRACE_QDRANT__API_KEY="own", **file).qdrant.api_key.get_secret_value() == "own"
    assert loaded(monkeypatch, MILLRACE_QDRANT__API_KEY="").qdrant.api_key.get_secret_value() == "from the file"


def test_a_file_that_cannot_be_read_is_named_with_its_variable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSettings, match=r"MILLRACE_REDIS__PASSWORD_FILE: the file '/nowhere/at/all' cannot be"):
        loaded(monkeypatch, MILLRACE_REDIS__PASSWORD_FILE="/nowhere/at/all")
    (place / "binary").write_bytes(b"s3cr3t\xff")
    with pytest.raises(InvalidSettings, match="is not UTF-8") as raised:
        loaded(monkeypatch, MILLRACE_REDIS__PASSWORD_FILE="binary")
    assert "s3cr3t" not in str(raised.value)
    monkeypatch.delenv("MILLRACE_REDIS__PASSWORD_FILE")
    with pytest.raises(InvalidSettings, match=r"no section 'postgress'"):
        loaded(monkeypatch, MILLRACE_POSTGRESS__PASSWORD_FILE="binary")


def test_a_program_elsewhere_finds_the_same_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "auth").write_text("person:word")
    environment = program_environment(loaded(monkeypatch, MILLRACE_FLOWER__AUTH_FILE="auth"))
    assert environment["MILLRACE_FLOWER__AUTH_FILE"] == str(place / "auth")
    assert "person:word" not in environment.values()


@pytest.mark.parametrize("auth", ["nobody", ":word", "person:"])
def test_flowers_credentials_are_a_user_and_a_password(monkeypatch: pytest.MonkeyPatch, auth: str) -> None:
    with pytest.raises(InvalidSettings, match=r"MILLRACE_FLOWER__AUTH: .*must be user:password"):
        loaded(monkeypatch, MILLRACE_FLOWER__AUTH=auth)


def test_the_script_makes_each_secret_once_and_the_settings_take_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given one secret of the person's own
    made = place / "made"
    made.mkdir()
    (made / "redis_password").write_text("my own")
    # When the script runs twice
    for _ in range(2):
        subprocess.run([SECRETS, made], check=True, capture_output=True)
    # Then all are there, different, and for nobody who cannot look into the directory
    values = {file.name: file.read_text().strip() for file in made.iterdir()}
    assert values.pop("openai_api_key") == "", "nobody can make that one up"
    assert sorted(values) == ["flower_auth", "postgres_password", "qdrant_api_key", "redis_password", "webhooks_secret"]
    assert values["redis_password"] == "my own"
    assert len(set(values.values())) == 5
    assert made.stat().st_mode & 0o777 == 0o700
    assert all(len(value) >= 48 for name, value in values.items() if name != "redis_password")
    found = loaded(
        monkeypatch,
        MILLRACE_FLOWER__AUTH_FILE=str(made / "flower_auth"),
        MILLRACE_WEBHOOKS__SECRET_FILE=str(made / "webhooks_secret"),
    )
    assert found.webhooks.secret.get_secret_value() == values["webhooks_secret"]
    assert found.flower.auth.get_secret_value() == values["flower_auth"]
