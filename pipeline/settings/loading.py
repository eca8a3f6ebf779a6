"""Settings are read once, where a process starts, and handed out in parts."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pipeline.errors import InvalidSettings
from pipeline.settings.providers import CostSettings, OpenAIBatchSettings, OpenAISettings
from pipeline.settings.sections import (
    AuditSettings,
    ChunkingSettings,
    EmbeddingSettings,
    ExtractionSettings,
    FlowerSettings,
    IngestSettings,
    PostgresSettings,
    QdrantSettings,
    RedisSettings,
    SearchSettings,
    SourceSettings,
    WebhookSettings,
    WorkerSettings,
    WorkSettings,
)
from pipeline.settings.watching import (
    AlertSettings,
    GarbageSettings,
    LogSettings,
    MemorySettings,
    MetricsSettings,
    StorageSettings,
)

RUN_FILE = "run.json"
# MILLRACE_POSTGRES__PASSWORD_FILE names a file that holds what MILLRACE_POSTGRES__PASSWORD would.
FILE_SUFFIX = "_FILE"


class Settings(BaseSettings):
    """All sections, read once where a process starts and handed out in parts."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="MILLRACE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    home: Path = Field(Path(".millrace"), description="data, run file and logs of the embedded stack (MILLRACE_HOME)")
    tenant: str = Field("default", min_length=1, description="the tenant where a call names none")
    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings = RedisSettings()
    qdrant: QdrantSettings = QdrantSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    openai: OpenAISettings = OpenAISettings()
    openai_batch: OpenAIBatchSettings = OpenAIBatchSettings()
    cost: CostSettings = CostSettings()
    chunking: ChunkingSettings = ChunkingSettings()
    sources: SourceSettings = SourceSettings()
    extraction: ExtractionSettings = ExtractionSettings()
    ingest: IngestSettings = IngestSettings()
    work: WorkSettings = WorkSettings()
    search: SearchSettings = SearchSettings()
    audit: AuditSettings = AuditSettings()
    worker: WorkerSettings = WorkerSettings()
    webhooks: WebhookSettings = WebhookSettings()
    flower: FlowerSettings = FlowerSettings()
    logs: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    memory: MemorySettings = MemorySettings()
    garbage: GarbageSettings = GarbageSettings()
    alerts: AlertSettings = AlertSettings()
    storage: StorageSettings = StorageSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment = _EnvironmentSource(settings_cls)
        toml = TomlConfigSettingsSource(settings_cls, toml_file=_config_file())
        return init_settings, environment, toml, _RunFileSource(settings_cls, (init_settings, environment, toml))


class _EnvironmentSource(EnvSettingsSource):
    """The environment, with what it names in files. A variable that is there itself, and not empty, wins."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        found = dict(super()._load_env_vars())
        for name in [name for name in found if names_a_file(name)]:
            path, setting = found.pop(name), name[: -len(FILE_SUFFIX)]
            if path and not found.get(setting):
                found[setting] = _content(name.upper(), path)
        return found


class _RunFileSource(PydanticBaseSettingsSource):
    """The addresses of the stack that runs on this home."""

    def __init__(self, settings_cls: type[BaseSettings], earlier: tuple[PydanticBaseSettingsSource, ...]) -> None:
        super().__init__(settings_cls)
        self._earlier = earlier

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        home = next((found["home"] for source in self._earlier if (found := source()).get("home")), ".millrace")
        addresses = read_run_file(Path(home)).get("settings")
        return addresses if isinstance(addresses, dict) else {}


def read_run_file(home: Path) -> dict[str, Any]:
    """What `millrace up` wrote: `{"pid", "settings", "processes"}`; empty where no stack runs or ran."""
    try:
        content = json.loads((home / RUN_FILE).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def load_settings(**given: Any) -> Settings:
    """Reads the settings; raises InvalidSettings, naming the setting and what is wrong with it."""
    _check_sources()
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"MILLRACE_{'__'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" for item in error.errors()
        )
    except SettingsError as error:  # a list or a section in the environment; its message names the field, not the value
        wrong = f'{error}; lists are written as JSON, such as ["a", "b"]'
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        wrong = f"{_config_file()}: {error}"
    # Raised out here, so that no traceback shows the first error, which has the values in it.
    raise InvalidSettings(f"{wrong}. docs/configuration.md lists every setting.")


def names_a_file(variable: str) -> bool:
    """Whether this variable of the environment names a file with the value of a setting.

    Only settings of sections have files: there are variables of other kinds, such as MILLRACE_READY_FILE."""
    name = variable.upper()
    return name.startswith("MILLRACE_") and "__" in name and name.endswith(FILE_SUFFIX)


def _content(variable: str, path: str) -> str:
    try:
        # Who writes a file with an editor or `echo` ends it with a line break that is no part of the value.
        return Path(path).read_text("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:  # it would show the value
        wrong = "is not UTF-8"
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    raise InvalidSettings(f"{variable}: the file {path!r} {wrong}.")


def _config_file() -> Path:
    return Path(os.environ.get("MILLRACE_CONFIG", "millrace.toml"))


def _check_sources() -> None:
    """What pydantic-settings would pass over in silence: a file that was named and is missing, a misspelt section.

    Only names with `__` are looked at: Kubernetes makes others of its own for a service called millrace.
    """
    if "MILLRACE_CONFIG" in os.environ and not _config_file().is_file():
        raise InvalidSettings(f"MILLRACE_CONFIG: there is no file {str(_config_file())!r}.")
    for name in os.environ:
        prefix, found, rest = name.upper().partition("MILLRACE_")
        section, nested, _ = rest.partition("__")
        if found and not prefix and nested and section.lower() not in Settings.model_fields:
            raise InvalidSettings(f"{name}: there is no section {section.lower()!r}. docs/configuration.md lists all.")
