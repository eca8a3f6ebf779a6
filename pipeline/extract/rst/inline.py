"""What stands in the lines of reStructuredText: roles, references and escapes, as the text that a reader sees."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

# A literal, a role before or after its text, an inline target, a reference, a substitution, a footnote's mark.
_MARKED = re.compile(
    r"""(?P<literal>``(?>(?:[^`]|`(?!`(?!`)))+)``)
    |:(?P<role>[A-Za-z][\w.+-]{0,60}(?::[A-Za-z][\w.+-]{0,60}){0,3}):`(?P<text>(?>(?:[^`\\]|\\.)+))`
    |_?`(?P<quoted>(?>(?:[^`\\]|\\.)+))`(?P<after>__?|:[A-Za-z][\w.+:-]*:)?
    |\|(?P<substitution>[^|\s](?:[^|\n]{0,100}[^|\s])?)\|_{0,2}
    |\[(?P<note>\#?[\w.-]*|\*)\]_
    |(?<!\w)(?<!\w[-.+:])(?P<word>[^\W_]++(?>(?:[-._+:][^\W_]++)*))__?(?!\w)
    |\\(?P<escaped>.|\n)""",
    re.VERBOSE | re.DOTALL,
)
_TARGET = re.compile(r"^(.*)<([^<>]*)>$", re.DOTALL)
ANONYMOUS = "__"  # stands among the targets of a text that has some without a name
_SHORTENED = frozenset({"func", "meth", "class", "mod", "attr", "exc", "data", "const", "obj", "type", "any"})
_LITERAL_ROLES = frozenset({"code", "file", "samp", "literal", "math"})
_CODE_ROLES = _SHORTENED | _LITERAL_ROLES | {"command", "envvar", "kbd", "option", "program"}
_DROPPED = frozenset({"raw-html", "raw", "index"})


def shown(text: str, substitutions: Mapping[str, str], targets: Set[str]) -> str:
    """The text as a reader sees it, as Markdown; `targets` are the names that `name_` may refer to, in lower case."""

    def replace(match: re.Match[str]) -> str:
        found, whole = match.groupdict(), match[0]
        text = whole
        if found["literal"]:
            text = whole if "`" in whole[2:-2] else f"`{whole[2:-2]}`"
        elif found["role"]:
            text = _of_role(found["role"], found["text"])
        elif found["quoted"]:
            role = (found["after"] or "").strip("_:")
            text = _of_role(role, found["quoted"]) if role else _label(found["quoted"])
        elif found["substitution"]:
            text = substitutions.get(found["substitution"].lower(), whole)
        elif found["note"] is not None:
            text = f"[{found['note']}]"
        elif found["word"]:
            anonymous = whole.endswith("__") and ANONYMOUS in targets
            text = found["word"] if anonymous or found["word"].lower() in targets else whole
        elif found["escaped"]:
            text = found["escaped"].strip(" \n")
        return text

    return _MARKED.sub(replace, text)


def _label(text: str) -> str:
    """The text of a reference: without the address in it."""
    match = _TARGET.match(text)
    if match is None:
        return text.replace("\\", "")
    return (match[1].rstrip() or match[2]).replace("\\", "")


def _of_role(role: str, text: str) -> str:
    name = role.rpartition(":")[2]
    if name in _DROPPED:
        return ""
    label = _label(text) if name not in _LITERAL_ROLES else text
    if name in _SHORTENED and label.startswith("~"):
        label = label[1:].rpartition(".")[2]
    label = label.lstrip("!") if name in _SHORTENED else label
    if name in _CODE_ROLES:
        return f"`{label}`"
    if name == "pep":
        return f"PEP {label}"
    return f"RFC {label}" if name == "rfc" else label
