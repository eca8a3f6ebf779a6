"""OpenAI's webhooks: a hint that a batch has ended. Nothing depends on them, every batch is asked for all the same."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.embedding.openai.client import open_client
from pipeline.errors import InvalidSettings, WebhookRejected
from pipeline.ledger import remote
from pipeline.ledger.engine import Ledger
from pipeline.observe import logger
from pipeline.settings import OpenAIBatchSettings, OpenAISettings

_EVENTS = "batch."

_log = logger("openai_batch")


def hint(
    ledger: Ledger, openai: OpenAISettings, settings: OpenAIBatchSettings, headers: Mapping[str, str], body: bytes | str
) -> bool:
    """Takes what OpenAI posted to an endpoint of the application's. Returns whether it was about a batch that is waited
    for: that one is looked at within seconds.

    headers: of the request, as they came; body: its bytes, as they came. Raises WebhookRejected for what was not signed
    with `openai_batch.webhook_secret`, or minutes ago: answer that with status 400, everything else with 200. Raises
    InvalidSettings where no secret is set, LedgerUnavailable (answer 503: it is posted again).
    """
    import openai as library

    secret = settings.webhook_secret.get_secret_value()
    if not secret:
        raise InvalidSettings(
            "MILLRACE_OPENAI_BATCH__WEBHOOK_SECRET is not set: no webhook of OpenAI's can be told from a forged one"
        )
    client = open_client(openai)
    try:
        event = client.webhooks.unwrap(body, {name.lower(): value for name, value in headers.items()}, secret=secret)
    except (library.InvalidWebhookSignatureError, ValueError) as error:
        raise WebhookRejected(f"this is no webhook of OpenAI's: {error}") from error
    finally:
        client.close()
    kind, remote_id = getattr(event, "type", ""), getattr(getattr(event, "data", None), "id", None)
    if not (isinstance(kind, str) and kind.startswith(_EVENTS) and isinstance(remote_id, str)):
        return False
    with ledger.transaction() as connection:
        found = remote.make_due(connection, remote_id)
    _log.info("OpenAI says %s of %s%s", kind, remote_id, "" if found else ", which nobody waits for")
    return found
