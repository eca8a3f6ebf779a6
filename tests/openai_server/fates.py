"""What becomes of a batch beyond what is asked: faults of the operation `batch`, kept with the batch from its creation.

    token_limit                           fails as over the enqueued tokens
    invalid         code, message, line   fails in its check
    stuck           state                 never leaves this state by itself
    status          name, during          shows this status instead of `during`
    expired         done, lost            expires; that share of the lines is done, that share of the rest is nowhere
    gone            seconds               404, so long after it was made
    empty_ids                             file ids that are "" instead of null
    only_errors     status                every line fails
    line_error      status, match, every  such lines fail: 429, 500, 400, or 0, which is no status
    lost            match, every          such lines are in neither file
    wrong_index, wrong_dimension, wrong_count, nan, zero, null, no_usage   match, every: of such lines
    renamed         name, match, every    such lines say that another model made them
    null_ids        match, every          such lines have the custom_id null
    duplicated      match, every          such lines come twice
    unknown_ids     count                 so many lines more that nobody asked for
    garbage_lines   count                 so many lines more that are no JSON
    shuffled        seed                  in another order
    torn                                  the last line of the output ends in its middle
    u2028                                 U+2028 in each line

`match`: lines whose input has this in it. `every`: the first of each so many lines. None of them: all lines.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from openai_server.answers import ApiError, of_status
from openai_server.faults import Drawn, Fault
from openai_server.lines import Line

DAMAGES = ("wrong_index", "wrong_dimension", "wrong_count", "nan", "zero", "null", "no_usage", "renamed")


@dataclass(frozen=True)
class Fate:
    faults: Sequence[Fault] = ()

    def get(self, kind: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def hits(self, kind: str, line: Line, position: int) -> Fault | None:
        """The fault of this kind that hits a line."""
        return next((fault for fault in self.faults if fault.kind == kind and _hits(fault, line, position)), None)

    def damages(self, line: Line, position: int) -> Drawn:
        return Drawn([fault for kind in DAMAGES if (fault := self.hits(kind, line, position))])

    def error(self, line: Line, position: int) -> ApiError | None:
        """How a line fails that would not fail by itself."""
        fault = self.get("only_errors") or self.hits("line_error", line, position)
        if fault is None:
            return None
        return of_status(int(fault.get("status", 500)))

    def ordered(self, lines: Sequence[Line]) -> Sequence[Line]:
        if fault := self.get("shuffled"):
            shuffled = list(lines)
            random.Random(fault.get("seed", 0)).shuffle(shuffled)
            return shuffled
        return lines


def _hits(fault: Fault, line: Line, position: int) -> bool:
    if (every := fault.get("every")) and position % every:
        return False
    match = fault.get("match", "")
    return not match or match in json.dumps(line.body, ensure_ascii=False)
