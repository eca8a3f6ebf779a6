"""Mails (.eml) to text: the subject, the body as it was written, the names of what is attached."""

from __future__ import annotations

import email.policy
import re
from collections.abc import Callable
from datetime import timezone
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from email.parser import BytesParser
from email.utils import getaddresses, parsedate_to_datetime
from typing import Any

from pipeline.errors import ExtractionFailed
from pipeline.extract.blocks import Blocks
from pipeline.extract.found import Found
from pipeline.extract.text import clean, decode

_MAX_PARTS = 1000
_MAX_DEPTH = 20  # parts in parts, and mails in mails
_MAX_SUBJECT = 300  # characters
_MAX_ADDRESSES = 100
_ENCRYPTED = frozenset({"multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"})
_SIGNATURES = frozenset({"application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature"})

_KIND = re.compile(r"[\w.+-]+/[\w.+-]+$")

ReadHtml = Callable[[bytes, str | None], str]


class _Mail:
    def __init__(self, read_html: ReadHtml, uri: str) -> None:
        self.blocks = Blocks()
        self.attached: list[str] = []
        self.encrypted = False
        self._read_html = read_html
        self._uri = uri
        self._parts = 0

    def read(self, message: Message, depth: int) -> None:
        """Writes one part and those in it."""
        self._parts += 1
        if self._parts > _MAX_PARTS or depth > _MAX_DEPTH:
            raise ExtractionFailed(f"{self._uri} has more parts, or parts deeper in each other, than any mail has")
        kind = message.get_content_type()
        kind = kind if _KIND.match(kind) else "text/plain"
        if kind in _ENCRYPTED and "signed" not in str(message.get_param("smime-type", "")):
            self.encrypted = True
        elif kind == "message/rfc822" or (kind == "message/global" and message.is_multipart()):
            for inner in _parts(message):
                self.mail(inner, depth + 1)
        elif kind == "multipart/alternative":
            self._alternative(message, depth)
        elif message.is_multipart():
            parts = _parts(message)
            # What comes with an HTML part, mostly pictures, is a part of it and no attachment.
            for number, part in enumerate(parts):
                if kind != "multipart/related" or number == 0 or part.get_content_maintype() == "text":
                    self.read(part, depth + 1)
        elif kind not in _SIGNATURES:
            self._leaf(message, kind)

    def mail(self, message: Message, depth: int) -> None:
        """A mail in this one: its subject, who wrote it when, and its body."""
        self.blocks.heading(2, subject(message))
        lines = [f"{name}: {text}" for name in ("From", "Date", "To") if (text := header(message, name))]
        self.blocks.paragraph("\n".join(lines))
        self.read(message, depth)

    def _alternative(self, message: Message, depth: int) -> None:
        """The plain text, or the HTML where there is no plain text to speak of."""
        best: Blocks | None = None
        for part in sorted(_parts(message), key=lambda part: part.get_content_type() != "text/plain"):
            before, self.blocks = self.blocks, Blocks()
            self.read(part, depth + 1)
            found, self.blocks = self.blocks, before
            if found.text() and best is None:
                best = found
        if best is not None:
            self.blocks.markdown(best.text())

    def _leaf(self, message: Message, kind: str) -> None:
        name = _filename(message)
        attached = message.get_content_disposition() == "attachment" or (
            name and kind not in {"text/plain", "text/html"}
        )
        if attached or not kind.startswith("text/"):
            self.attached.append(name or kind)
            return
        payload = message.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else b""
        charset = message.get_content_charset()
        if kind == "text/html":
            self.blocks.markdown(self._read_html(data, charset))
        else:
            text = clean(decode(data, charset))
            if str(message.get_param("format", "")).lower() == "flowed":
                text = _unflowed(text, str(message.get_param("delsp", "")).lower() == "yes")
            self.blocks.markdown(text)


def _parts(message: Message) -> list[Message]:
    payload = message.get_payload()
    return [part for part in payload if isinstance(part, Message)] if isinstance(payload, list) else []


def _filename(message: Message) -> str:
    try:
        name = message.get_filename() or ""
    except (ValueError, LookupError, TypeError, MessageError):
        return ""
    return " ".join(_decoded(name).replace("\\", "/").rpartition("/")[2].split())[:200]


def _unflowed(text: str, joined: bool) -> str:
    """The paragraphs of a text in which a blank at the end of a line says that the paragraph goes on (RFC 3676)."""
    lines: list[str] = []
    flows = False
    for line in text.split("\n"):
        quoted = re.match(r">*", line)
        depth = quoted.end() if quoted else 0
        body = line[depth:].removeprefix(" ")
        before = re.match(r">*", lines[-1]) if lines else None
        if flows and before is not None and before.end() == depth:
            lines[-1] += body
        else:
            lines.append(f"{line[:depth]} {body}" if depth else body)
        flows = body.endswith(" ") and body != "-- "
        if flows and joined:
            lines[-1] = lines[-1][:-1]
    return "\n".join(line.rstrip() for line in lines)


def _decoded(written: str) -> str:
    """A header with its encoded words; as it stands where they are broken. Bytes without a charset are UTF-8, or
    Latin-1 where they are not."""
    try:
        raw = written.encode("ascii", "surrogateescape")
        return decode(raw) if any(byte > 127 for byte in raw) else str(make_header(decode_header(written)))
    except (ValueError, LookupError, MessageError):
        return written.encode("utf-8", "replace").decode("utf-8")


def header(message: Message, name: str) -> str:
    """A header in one line; "" where there is none."""
    # As they are in the file: what `get` returns has lost the bytes that are in no encoded word.
    found = (str(value) for key, value in message.raw_items() if key.lower() == name.lower())
    return " ".join(_decoded(next(found, "")).split())


def subject(message: Message) -> str:
    return header(message, "Subject")[:_MAX_SUBJECT]


def _people(message: Message, name: str) -> list[str]:
    """Names and addresses, as `Ann <ann@example.org>`."""
    written = header(message, name)
    found = getaddresses([written])[:_MAX_ADDRESSES]
    people = [f"{who} <{where}>" if who and where else who or where for who, where in found]
    return [person for person in people if person] or ([written] if written else [])


def _date(message: Message) -> str:
    try:
        moment = parsedate_to_datetime(header(message, "Date"))
        return moment.isoformat() if moment.tzinfo else moment.replace(tzinfo=timezone.utc).isoformat()  # noqa: UP017
    except (ValueError, TypeError, OverflowError, IndexError):
        return ""


def read_mail(data: bytes, uri: str, read_html: ReadHtml) -> Found:
    """The plain part of a mail rather than its HTML; attachments are named, not read. Raises ExtractionFailed."""
    try:
        message = BytesParser(policy=email.policy.compat32).parsebytes(data)
        mail = _Mail(read_html, uri)
        title = subject(message)
        mail.blocks.heading(1, title)
        mail.read(message, 0)
    except (MessageError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ExtractionFailed(f"{uri} is not a mail that can be read ({error})") from error
    if mail.encrypted and len(mail.blocks.text()) <= len(title) + 2:
        raise ExtractionFailed(f"{uri} is encrypted; save it decrypted and ingest it again")
    if mail.attached:
        mail.blocks.paragraph("Attachments: " + ", ".join(mail.attached))
    metadata: dict[str, Any] = {
        "authors": _people(message, "From"),
        "recipients": [*_people(message, "To"), *_people(message, "Cc")],
        "created": _date(message),
        "message_id": header(message, "Message-ID"),
        "attachments": mail.attached,
    }
    return Found(mail.blocks.text(), title, {key: value for key, value in metadata.items() if value})
