"""Values that hold secrets: what their URLs and keys must look like, and how they are shown."""

from __future__ import annotations

import base64
from functools import partial
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AfterValidator, SecretStr


def mask_url(url: str) -> str:
    """The URL with its password shown as `***`; of one that cannot be taken apart nothing is shown."""
    parts = urlsplit(url)
    if not _is_whole(url) or (not parts.netloc and "@" in url):
        return "***"
    if parts.password is None:
        return url
    host = parts.hostname or ""
    netloc = f"{parts.username or ''}:***@{f'[{host}]' if ':' in host else host}"
    if parts.port is not None:
        netloc += f":{parts.port}"
    return urlunsplit(parts._replace(netloc=netloc))


def _is_whole(url: str) -> bool:
    """False where host and port cannot be read, as with a `/` in a password: what follows it would pass for a path."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


def _with_scheme(value: SecretStr, schemes: tuple[str, ...]) -> SecretStr:
    # The messages show nothing of the value: a URL that is not well-formed may have its password anywhere.
    url = value.get_secret_value()
    if url and not any(url.lower().startswith(f"{scheme}://") for scheme in schemes):
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not _is_whole(url):
        raise ValueError("host and port cannot be read; write special characters of the password as %XX (/ is %2F)")
    return value


def url_of(*schemes: str) -> AfterValidator:
    return AfterValidator(partial(_with_scheme, schemes=schemes))


def with_password(url: SecretStr, password: SecretStr | None) -> SecretStr:
    """The URL with this password in it, where there is one and the URL has none."""
    parts = urlsplit(url.get_secret_value())
    if password is None or not password.get_secret_value() or not parts.netloc or parts.password:
        return url
    user, at, place = parts.netloc.rpartition("@")
    name = user.removesuffix(":") if at else ""
    netloc = f"{name}:{quote(password.get_secret_value(), safe='')}@{place}"
    return SecretStr(urlunsplit(parts._replace(netloc=netloc)))


def whole_credentials(value: SecretStr) -> SecretStr:
    user, _, password = value.get_secret_value().partition(":")
    if value.get_secret_value() and not (user and password):
        raise ValueError("must be user:password")
    return value


def whole_webhook_secret(value: SecretStr) -> SecretStr:
    if secret := value.get_secret_value():
        webhook_key(secret)
    return value


def webhook_key(secret: str) -> bytes:
    """The key of a secret in the form of Standard Webhooks, `whsec_` and base64. Raises ValueError, which names no part
    of it."""
    prefix, _, encoded = secret.partition("_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and 24 to 64 bytes in base64: echo whsec_$(openssl rand -base64 32)")
    return key
