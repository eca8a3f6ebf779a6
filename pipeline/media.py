"""Which kind of document these bytes are: told from the name, checked against the content.

One table says which media types can be read and by what means (`FORMATS`); sources ask it what is worth handing
over, extraction asks it how to read. A new format is a row here and an extractor of the same name in `extract`.
The table is our own, because the system's (`/etc/mime.types`) differs from machine to machine and a document's
fingerprint must not.
"""

from __future__ import annotations

import codecs
import mimetypes
import posixpath
from typing import Literal
from urllib.parse import unquote, urlsplit

from pipeline import containers
from pipeline.containers import DOC, DOCX, EPUB, ODF, OLE, OOXML, PPT, PPTX, XLS, XLSB, XLSX, ZIP
from pipeline.errors import UnsupportedFormat

Format = Literal[
    "plain",
    "markdown",
    "html",
    "pdf",
    "word",
    "slides",
    "workbook",
    "epub",
    "mail",
    "rst",
    "notebook",
    "opendocument",
    "rtf",
    "ole",
    "csv",
    "parquet",
]

BINARY = "application/octet-stream"
PLAIN = "text/plain"
HTML = "text/html"
MARKDOWN = "text/markdown"
PDF = "application/pdf"
MAIL = "message/rfc822"
RTF = "application/rtf"
PARQUET = "application/vnd.apache.parquet"

FORMATS: dict[str, Format] = {
    PLAIN: "plain",
    MARKDOWN: "markdown",
    "text/x-markdown": "markdown",
    HTML: "html",
    "application/xhtml+xml": "html",
    PDF: "pdf",
    "application/x-pdf": "pdf",
    DOCX: "word",
    f"{OOXML}.wordprocessingml.template": "word",
    "application/vnd.ms-word.document.macroenabled.12": "word",
    "application/vnd.ms-word.template.macroenabled.12": "word",
    PPTX: "slides",
    f"{OOXML}.presentationml.slideshow": "slides",
    f"{OOXML}.presentationml.template": "slides",
    "application/vnd.ms-powerpoint.presentation.macroenabled.12": "slides",
    "application/vnd.ms-powerpoint.slideshow.macroenabled.12": "slides",
    XLSX: "workbook",
    f"{OOXML}.spreadsheetml.template": "workbook",
    "application/vnd.ms-excel.sheet.macroenabled.12": "workbook",
    XLSB: "workbook",
    XLS: "workbook",
    f"{ODF}.spreadsheet": "workbook",
    EPUB: "epub",
    f"{ODF}.text": "opendocument",
    f"{ODF}.presentation": "opendocument",
    DOC: "ole",
    PPT: "ole",
    MAIL: "mail",
    "text/x-rst": "rst",
    "text/prs.fallenstein.rst": "rst",
    "application/x-ipynb+json": "notebook",
    RTF: "rtf",
    "text/rtf": "rtf",
    "text/csv": "csv",
    "application/csv": "csv",
    "text/tab-separated-values": "csv",
    PARQUET: "parquet",
    "application/json": "plain",
    "application/ld+json": "plain",
    "application/x-ndjson": "plain",
    "application/javascript": "plain",
    "application/ecmascript": "plain",
    "application/x-javascript": "plain",
    "application/typescript": "plain",
    "application/x-sh": "plain",
    "application/x-shellscript": "plain",
    "application/sql": "plain",
    "application/toml": "plain",
    "application/yaml": "plain",
    "application/x-yaml": "plain",
    "application/xml": "plain",
    "application/x-tex": "plain",
    "application/x-python": "plain",
}

# A type whose name says no more than "some bytes" or "some text": the name and the content know better.
_VAGUE = frozenset({"", BINARY, "binary/octet-stream", "application/unknown", "application/download", PLAIN})

_EXTENSIONS = {
    MARKDOWN: "md markdown mdown mkd mkdn mdx",
    HTML: "html htm xhtml xht",
    PDF: "pdf",
    DOCX: "docx",
    f"{OOXML}.wordprocessingml.template": "dotx",
    "application/vnd.ms-word.document.macroenabled.12": "docm",
    "application/vnd.ms-word.template.macroenabled.12": "dotm",
    PPTX: "pptx",
    f"{OOXML}.presentationml.slideshow": "ppsx",
    f"{OOXML}.presentationml.template": "potx",
    "application/vnd.ms-powerpoint.presentation.macroenabled.12": "pptm",
    "application/vnd.ms-powerpoint.slideshow.macroenabled.12": "ppsm",
    XLSX: "xlsx",
    f"{OOXML}.spreadsheetml.template": "xltx",
    "application/vnd.ms-excel.sheet.macroenabled.12": "xlsm",
    XLSB: "xlsb",
    XLS: "xls xlt",
    DOC: "doc",
    PPT: "ppt pps",
    f"{ODF}.text": "odt ott",
    f"{ODF}.presentation": "odp otp",
    f"{ODF}.spreadsheet": "ods ots",
    EPUB: "epub",
    MAIL: "eml",
    "text/x-rst": "rst rest",
    "application/x-ipynb+json": "ipynb",
    RTF: "rtf",
    PLAIN: "txt text log adoc asciidoc org tex bib me 1st nfo diff patch po pot srt vtt",
    "application/json": "json jsonc json5 geojson webmanifest",
    "application/x-ndjson": "jsonl ndjson",
    "application/toml": "toml",
    "application/yaml": "yaml yml",
    "application/xml": "xml xsd xsl xslt rng wsdl plist rss atom dtd",
    "image/svg+xml": "svg",
    "text/csv": "csv psv",
    "text/tab-separated-values": "tsv tab",
    PARQUET: "parquet pq",
    "text/css": "css scss sass less styl",
    "text/x-python": "py pyi pyw pyx pxd",
    "text/x-rust": "rs",
    "text/x-go": "go",
    "text/javascript": "js mjs cjs jsx",
    "text/x-typescript": "ts mts cts tsx",
    "text/x-c": "c h",
    "text/x-c++": "cc cpp cxx hh hpp hxx ipp inl cu cuh",
    "text/x-csharp": "cs csx",
    "text/x-java": "java",
    "text/x-kotlin": "kt kts",
    "text/x-scala": "scala sc",
    "text/x-swift": "swift",
    "text/x-objective-c": "m mm",
    "text/x-ruby": "rb rake gemspec",
    "text/x-php": "php phtml",
    "text/x-perl": "pl pm pod",
    "text/x-lua": "lua",
    "text/x-r": "r rmd",
    "text/x-julia": "jl",
    "text/x-haskell": "hs lhs",
    "text/x-ocaml": "ml mli",
    "text/x-elixir": "ex exs",
    "text/x-erlang": "erl hrl",
    "text/x-clojure": "clj cljs cljc edn",
    "text/x-lisp": "el lisp lsp scm rkt",
    "text/x-fortran": "f f90 f95 f03 f08 for",
    "text/x-pascal": "pas pp",
    "text/x-dart": "dart",
    "text/x-zig": "zig",
    "text/x-nim": "nim",
    "text/x-asm": "asm s",
    "text/x-shellscript": "sh bash zsh fish ksh ps1 bat cmd",
    "text/x-sql": "sql ddl",
    "text/x-protobuf": "proto",
    "text/x-graphql": "graphql gql",
    "text/x-cmake": "cmake",
    "text/x-makefile": "mk mak",
    "text/x-terraform": "tf tfvars hcl",
    "text/x-ini": "ini cfg conf cnf properties env editorconfig desktop service",
    "text/x-vue": "vue svelte astro",
    "text/x-template": "j2 jinja jinja2 mustache hbs erb ejs tmpl tpl",
}
_BY_EXTENSION = {f".{extension}": kind for kind, names in _EXTENSIONS.items() for extension in names.split()}

_BY_NAME = {
    "makefile": "text/x-makefile",
    "gnumakefile": "text/x-makefile",
    "dockerfile": "text/x-dockerfile",
    "containerfile": "text/x-dockerfile",
    "cmakelists.txt": "text/x-cmake",
    "jenkinsfile": "text/x-groovy",
    "vagrantfile": "text/x-ruby",
    "gemfile": "text/x-ruby",
    "rakefile": "text/x-ruby",
}

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", PDF),
    (b"{\\rtf", RTF),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x1f\x8b", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLE),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x7fELF", "application/x-executable"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (b"PAR1", PARQUET),
)

# Formats whose bytes are text: what a signature shows outweighs what their name says.
_TEXTS = frozenset({"plain", "markdown", "html", "mail", "rst", "notebook", "rtf", "csv"})
# Formats that live in a container, and so are never mistaken for each other: the content decides among them.
_CONTAINED = frozenset({"word", "slides", "workbook", "epub", "opendocument", "ole"})

# The built-in table of the standard library names formats that we cannot read, for messages and to skip early.
_STANDARD = mimetypes.MimeTypes(filenames=()).types_map[True]

SNIFF_BYTES = 8192
_NOT_CONTROLS = bytes(set(range(256)) - (set(range(32)) - set(b"\t\n\x0b\x0c\r\x08\x1b")))
# One control character in this many bytes is a scratch on a text; more is binary (random bytes have one in ten).
_STRANGE_SHARE = 20
# So are NULs alone up to one in this many bytes: fields that somebody ended with them.
_NUL_SHARE = 8
# Byte order marks and their encodings, first found first: UTF-32 begins like UTF-16.
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def essence(media_type: str) -> str:
    """The type without its parameters, in lower case: `Text/HTML; charset=x` is `text/html`."""
    return media_type.partition(";")[0].strip().lower()


def charset(media_type: str) -> str | None:
    """The charset parameter of a media type, None where it has none."""
    for parameter in media_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and (value := value.strip().strip("\"'")):
            return value.lower()
    return None


def format_of(media_type: str) -> Format | None:
    """How documents of this type are read; None where no extractor knows it."""
    kind = essence(media_type)
    known = FORMATS.get(kind)
    if known is None and (
        kind.startswith("text/") or (kind.startswith("application/") and kind.endswith(("+json", "+xml", "+yaml")))
    ):
        return "plain"
    return known


def unsupported(uri: str, media_type: str) -> UnsupportedFormat:
    """What is said of a document that no extractor knows."""
    return UnsupportedFormat(
        f"{uri}: no extractor knows {essence(media_type)}; convert it to text, Markdown, HTML, PDF or an office format "
        "(docs/formats.md lists all)"
    )


def from_name(name: str) -> str | None:
    """The media type that a file name or URI suggests; None where it suggests none.

    A type that `format_of` does not know is returned too: it tells that the file is not worth opening.
    """
    path = name
    if "://" in name:
        try:
            path = unquote(urlsplit(name).path)
        except ValueError:
            return None
    base = posixpath.basename(path).lower()
    if found := _BY_NAME.get(base):
        return found
    extension = posixpath.splitext(base)[1]
    return _BY_EXTENSION.get(extension) or _STANDARD.get(extension)


def promises_document(name: str) -> bool:
    """Whether the name says that this is a document that can be read; somebody may be looking for it."""
    kind = from_name(name)
    return kind is not None and format_of(kind) is not None


def rules_out_document(name: str) -> bool:
    """Whether the name says that this is something that no extractor knows: not worth opening."""
    kind = from_name(name)
    return kind is not None and format_of(kind) is None


def from_content(data: bytes) -> str:
    """The media type that the first bytes show: a signature, HTML, text, or application/octet-stream."""
    head = data[:SNIFF_BYTES]
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return containers.in_zip(data) if kind == ZIP else containers.in_ole(data) if kind == OLE else kind
    if not looks_like_text(head):
        return BINARY
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n\x0c")[:512].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return HTML
    return PLAIN


def looks_like_text(data: bytes) -> bool:
    """Whether the first bytes could be text of any encoding: a BOM, or no control characters but white space."""
    head = data[:SNIFF_BYTES]
    if head.startswith(tuple(mark for mark, _ in BOMS)):
        return True
    return not head.translate(None, delete=_NOT_CONTROLS)


def detect(name: str, data: bytes, declared: str | None = None) -> str:
    """The media type of a document: what was declared, unless that says nothing, then the name, then the content.

    A signature in the content (`%PDF-`, a zip, an image) outweighs a name or declaration that says text, so that
    a wrong extension neither hides a PDF nor lets binary junk through as text. Parameters of `declared` are kept.
    """
    seen = from_content(data)
    told = declared if declared is not None and essence(declared) not in _VAGUE else None
    kind = told or from_name(name)
    if kind is None:
        kind = _doubtful(data, PLAIN) if seen == BINARY and declared and essence(declared) == PLAIN else seen
    elif format_of(kind) in _TEXTS:
        if seen not in {PLAIN, HTML} and format_of(seen) != format_of(kind):
            kind = _doubtful(data, kind) if seen == BINARY else seen
    elif format_of(kind) in _CONTAINED:
        if format_of(seen) != format_of(kind) and seen != BINARY and not (seen == ZIP and containers.is_cut(data)):
            kind = seen
    elif seen == PDF or format_of(seen) in _CONTAINED:
        kind = seen
    if declared and told is None and charset(declared) and format_of(kind) in _TEXTS:
        kind = f"{kind}; charset={charset(declared)}"
    return kind


def _doubtful(data: bytes, kind: str) -> str:
    """`kind` for text with a few stray control characters (extraction removes them), else octet-stream."""
    head = data[:SNIFF_BYTES]
    strange = len(head.translate(None, delete=_NOT_CONTROLS))
    if strange * _STRANGE_SHARE <= len(head):
        return kind
    # NUL and no other one, between words: a text of records. (Junk has others too.)
    if strange == head.count(0) and strange * _NUL_SHARE <= len(head):
        return kind
    # UTF-16 without a BOM: every other byte of Latin text is NUL.
    pairs = len(head) // 2
    nul = max(head[0::2].count(0), head[1::2].count(0))
    return kind if pairs >= 4 and nul >= 0.4 * pairs and strange <= 1.2 * nul else BINARY
