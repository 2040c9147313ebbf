"""The server's settings: flags before environment (QUAVER_*) before a YAML file before the defaults."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from ...errors import BadInput, ConfigError, MissingFile
from ..speculation import Speculating
from .limits import Limits

OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts", "gpt-realtime")
OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "onyx"),
    *("nova", "sage", "shimmer", "verse", "marin", "cedar"),
)


def config_folder() -> Path:
    """Where a user's own quaver files live (`XDG_CONFIG_HOME`, else ~/.config)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "quaver"


class ServerSettings(BaseSettings):
    """All that `quaver serve` can be told. Environment: QUAVER_HOST, QUAVER_LIMITS__TEXT_CHARACTERS, and so on.

    Attributes:
        models: bundled names or folders; the first one answers where a request names none.
        slots: sessions that speak at the same time. waiting: requests that may wait for a slot.
        keys: file of hashed API keys; where it has none, the server binds to loopback only.
        voices: folder of the voices that clients add.
        origins: web origins besides the server's own that may use it from a browser.
        hosts: names that a client may call this server, besides loopback's, when it has no keys.
        aliases: OpenAI's model and voice names mean the first model and its default voice.
        speculation: of every answer of every model; besides, requests may ask a model with a drafter for it.
        drain_seconds: what accepted work gets to finish after SIGTERM.
    """

    model_config = SettingsConfigDict(
        env_prefix="QUAVER_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8600, ge=0, le=65535)
    models: tuple[str, ...] = Field(default=("default",), min_length=1)
    slots: int = Field(default=8, ge=1, le=4096)
    waiting: int = Field(default=16, ge=0)
    threads: int = Field(default=1, ge=1, le=256)
    keys: Path = Field(default_factory=lambda: config_folder() / "keys.json")
    voices: Path = Field(default_factory=lambda: config_folder() / "voices")
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    aliases: bool = True
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    speculation: Speculating = Speculating()
    drain_seconds: float = Field(default=30.0, ge=0)
    log_format: Literal["json", "text"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    tracing: bool = False
    limits: Limits = Limits()

    @field_validator("origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not origin.startswith(("http://", "https://")) or origin.rstrip("/").count("/") != 2:
                raise ValueError(f"{origin!r} is no origin; write it as https://example.org")
        return tuple(origin.rstrip("/").lower() for origin in value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))


def read_settings(file: Path | None = None, **flags: Any) -> ServerSettings:
    """Settings from a file (or the one that QUAVER_CONFIG names), the environment and flags (None: not given).

    Raises:
        MissingFile, ConfigError: the file is not there, or a setting is unknown or out of range (it is named).
    """
    given = {name: value for name, value in flags.items() if value is not None}
    path = file or (Path(os.environ["QUAVER_CONFIG"]) if os.environ.get("QUAVER_CONFIG") else None)
    if path is not None and not path.is_file():
        raise MissingFile(f"{path}: there is no such settings file")
    reader = type("_Read", (ServerSettings,), {"model_config": {**ServerSettings.model_config, "yaml_file": path}})
    try:
        return reader(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {where or 'file'}: {first['msg']} (got {first.get('input')!r:.80})") from None
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path or 'the environment'}: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_safe_to_bind(settings: ServerSettings, has_keys: bool) -> None:
    """Without keys only this machine may speak. Also checks the TLS files.

    Raises:
        BadInput: an open server on a network, or half of a TLS pair. MissingFile: a TLS file that is not there.
    """
    if not has_keys and not is_loopback(settings.host):
        raise BadInput(
            f"without API keys the server binds to loopback only, not to {settings.host}; make a key with "
            f"`quaver serve keys add NAME --keys {settings.keys}` and start again"
        )
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise BadInput("TLS needs both --tls-certificate and --tls-key")
    for path in (settings.tls_certificate, settings.tls_key):
        if path is not None and not path.is_file():
            raise MissingFile(f"{path}: there is no such TLS file")
