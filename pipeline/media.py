"""Which kind of document these bytes are: told from the name, checked against the content.

One table says which media types can be read and by what means (`FORMATS`); sources ask it what is worth handing
over, extraction asks it how to read. A new format is a row here and an extractor of the same name in `extract`.
The table is our own, because the system's (`/etc/mime.types`) differs from machine to machine and a document's
fingerprint must not.
"""

from __future__ import annotations

import mimetypes
import posixpath
from typing import Literal
from urllib.parse import unquote, urlsplit

Format = Literal["plain", "markdown", "html", "pdf"]

BINARY = "application/octet-stream"
PLAIN = "text/plain"
HTML = "text/html"
MARKDOWN = "text/markdown"
PDF = "application/pdf"

FORMATS: dict[str, Format] = {
    PLAIN: "plain",
    MARKDOWN: "markdown",
    "text/x-markdown": "markdown",
    HTML: "html",
    "application/xhtml+xml": "html",
    PDF: "pdf",
    "application/x-pdf": "pdf",
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
    "application/x-python-code": "plain",
}

# A type whose name says no more than "some bytes" or "some text": the name and the content know better.
_VAGUE = frozenset({"", BINARY, "binary/octet-stream", "application/unknown", "application/download", PLAIN})

_EXTENSIONS = {
    MARKDOWN: "md markdown mdown mkd mkdn mdx",
    HTML: "html htm xhtml xht",
    PDF: "pdf",
    PLAIN: "txt text log rst adoc asciidoc org tex bib me 1st nfo diff patch po pot srt vtt",
    "application/json": "json jsonc json5 geojson ipynb webmanifest",
    "application/x-ndjson": "jsonl ndjson",
    "application/toml": "toml",
    "application/yaml": "yaml yml",
    "application/xml": "xml xsd xsl xslt rng wsdl plist rss atom dtd",
    "image/svg+xml": "svg",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv tab",
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
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"\x28\xb5\x2f\xfd", "application/zstd"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x7fELF", "application/x-executable"),
    (b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (b"PAR1", "application/vnd.apache.parquet"),
)

# The built-in table of the standard library names formats that we cannot read, for messages and to skip early.
_STANDARD = mimetypes.MimeTypes(filenames=()).types_map[True]

SNIFF_BYTES = 8192
_NOT_CONTROLS = bytes(set(range(256)) - (set(range(32)) - set(b"\t\n\x0b\x0c\r\x08\x1b")))
# One control character in this many bytes is a scratch on a text; more is binary (random bytes have one in ten).
_STRANGE_SHARE = 20
_BOMS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


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


def from_content(data: bytes) -> str:
    """The media type that the first bytes show: a signature, HTML, text, or application/octet-stream."""
    head = data[:SNIFF_BYTES]
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if not looks_like_text(head):
        return BINARY
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n\x0c")[:512].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return HTML
    return PLAIN


def looks_like_text(data: bytes) -> bool:
    """Whether the first bytes could be text of any encoding: a BOM, or no control characters but white space."""
    head = data[:SNIFF_BYTES]
    if head.startswith(_BOMS):
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
    elif format_of(kind) in {"plain", "markdown", "html"}:
        if seen not in {PLAIN, HTML}:
            kind = _doubtful(data, kind) if seen == BINARY else seen
    elif seen == PDF:
        kind = PDF
    if declared and told is None and charset(declared) and format_of(kind) in {"plain", "markdown", "html"}:
        kind = f"{kind}; charset={charset(declared)}"
    return kind


def _doubtful(data: bytes, kind: str) -> str:
    """`kind` for text with a few stray control characters (extraction removes them), else octet-stream."""
    head = data[:SNIFF_BYTES]
    strange = len(head.translate(None, delete=_NOT_CONTROLS))
    if strange * _STRANGE_SHARE <= len(head):
        return kind
    # UTF-16 without a BOM: every other byte of Latin text is NUL.
    pairs = len(head) // 2
    nul = max(head[0::2].count(0), head[1::2].count(0))
    return kind if pairs >= 4 and nul >= 0.4 * pairs and strange <= 1.2 * nul else BINARY
