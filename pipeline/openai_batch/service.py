"""The Batch API's story, step by step: upload -> create -> look -> harvest -> decide -> clean.

`protocol` says what is to be done for a row and what follows from how it went; this does it. Each step is one method:
what it intends is committed before the server is asked for anything, and what came of it after. No step waits: where
there is nothing to do yet the row is handed back, and says when there will be.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from pipeline.embedding.openai.spec import normalised_url
from pipeline.ledger import circuits, purchases, remote, remote_items, spending
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.remote import RemoteBatch
from pipeline.observe import count, logger, operation
from pipeline.openai_batch import after
from pipeline.openai_batch.answers import Batch, Failure, completed_of, status_of
from pipeline.openai_batch.choosing import since
from pipeline.openai_batch.harvest import PROVIDER, Harvest, doubts
from pipeline.openai_batch.lines import ANSWERED
from pipeline.openai_batch.ordering import read as read_order
from pipeline.openai_batch.protocol import next_step
from pipeline.openai_batch.rendering import is_file_of, key_of
from pipeline.openai_batch.server import Progress, Server
from pipeline.openai_batch.steps import (
    Change,
    Clean,
    Commit,
    Create,
    DeleteInput,
    Look,
    Nothing,
    Read,
    Search,
    Timing,
    Upload,
    Wait,
    batches_of,
)
from pipeline.openai_batch.upload import upload
from pipeline.openai_batch.verdicts import Item, verdicts
from pipeline.settings import CostSettings, OpenAIBatchSettings, OpenAISettings

# States in which a batch can still be given up without being read.
_YOUNG = ("planned", "uploading", "uploaded", "creating", "submitted")
UNNEEDED = "nobody needs what it holds any more: its jobs were cancelled"
# How errors of the Batch API begin in the circuit of OpenAI, by which it knows its own again.
_OURS = "Batch API: "
# States that are counted when they are reached.
_EVENTS = {"submitted": "created", "ended": "ended", "closed": "closed"}
# More would not fit into the column.
_MOST_TRIES = 30_000
_CAUSES = {"denied": "KeyRejected", "quota": "QuotaExhausted"}

_Doing = Commit | Upload | Create | Search | DeleteInput | Look | Read | Clean

_log = logger("openai_batch")


def _nothing(_: str) -> None:
    return None


class BatchService:
    """Of one process. at: told the name of each boundary that a crash could come at, for tests: `create: intended`
    (committed), `create: asked` (the server has answered), `create: told` (what follows is committed)."""

    def __init__(
        self,
        ledger: Ledger,
        openai: OpenAISettings,
        batch: OpenAIBatchSettings,
        cost: CostSettings,
        server: Server | None = None,
        at: Callable[[str], None] = _nothing,
    ) -> None:
        self._ledger = ledger
        self._settings = batch
        self._cost = cost
        self._server = server or Server(openai)
        self._at = at
        self._endpoint = normalised_url(openai.base_url)
        self._timing = Timing(
            timeout=openai.timeout,
            grace=batch.grace_seconds,
            first=batch.poll_seconds,
            most=batch.poll_most_seconds,
            window=batch.window_seconds,
        )

    def close(self) -> None:
        self._server.close()

    # -- the story ---------------------------------------------------------------------------------------------------

    def carry_on(self, held: RemoteBatch, progress: Progress) -> None:
        """Does all there is to do now for a claimed row, and hands it back.

        Raises LeaseLost where another worker has it by now, LedgerUnavailable; then what is committed is gone on from.
        """
        if (elsewhere := self._endpoint_of_another(held)) is not None:
            with self._ledger.transaction() as connection:
                remote.release(connection, held, self._timing.most, elsewhere)
            return
        row = self._give_up_unneeded(held)
        while True:
            progress()
            step = next_step(row, row.now, self._timing)
            if isinstance(step, Nothing | Wait):
                self._hand_back(row, step.seconds if isinstance(step, Wait) else 0.0)
                return
            name, row, change = self._carry_out(row, step, progress)
            row = self._commit(row, change)
            self._at(f"{name}: told")
            if change.seconds > 0:
                return

    def _carry_out(self, row: RemoteBatch, step: _Doing, progress: Progress) -> tuple[str, RemoteBatch, Change]:
        """(name of the step, the row as it is by now, what follows)."""
        match step:
            case Commit(change):
                name = "commit"
            case Upload():
                name, (row, change) = "upload", self._upload(row, step, progress)
            case Create():
                name, (row, change) = "create", self._create(row, step)
            case Search():
                name, change = "search", self._search(row, step, progress)
            case DeleteInput():
                name, change = "delete", self._delete_input(row, step)
            case Look():
                name, change = "look", self._look(row, step)
            case Read():
                name, (row, change) = "read", self._read(row, step, progress)
            case Clean():
                name, change = "clean", self._clean(row, step, progress)
        return name, row, change

    def _endpoint_of_another(self, row: RemoteBatch) -> str | None:
        """Why this process cannot ask for the batch; None: it can. Another server would say that there is none."""
        _, order = read_order(row.spec)
        if order.endpoint == self._endpoint:
            return None
        return f"it is at {order.endpoint}, and MILLRACE_OPENAI__BASE_URL is {self._endpoint}: it waits for the former"

    def _give_up_unneeded(self, row: RemoteBatch) -> RemoteBatch:
        """A batch is shared: it is cancelled when nobody needs any of its texts."""
        if row.state not in _YOUNG or row.cancel_reason is not None:
            return row
        with self._ledger.transaction() as connection:
            if remote_items.needed(connection, row.id):
                return row
            return remote.change(connection, row, cancel_reason=UNNEEDED)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _upload(self, row: RemoteBatch, step: Upload, progress: Progress) -> tuple[RemoteBatch, Change]:
        row = self._intend(row, step.commit, "upload")
        row, answer = upload(self._ledger, self._server, row, step, self._settings.bytes, progress)
        self._at("upload: asked")
        if answer is None:
            return row, after.nothing_wanted()
        self._judge(answer)
        return row, after.after_upload(row, answer, self._timing, _jitter())

    def _create(self, row: RemoteBatch, step: Create) -> tuple[RemoteBatch, Change]:
        """The one step that spends money, and the one that is never repeated from the state that it leaves."""
        row = self._intend(row, step.commit, "create")
        began = time.monotonic()
        with operation("openai.create"):
            answer = self._server.create(step.file_id, step.metadata)
        self._at("create: asked")
        self._judge(answer)
        change = after.after_create(row, answer, _now(row, began), self._timing, _jitter())
        return row, change

    def _search(self, row: RemoteBatch, step: Search, progress: Progress) -> Change:
        began = time.monotonic()
        found = self._server.batches_since(step.since, progress)
        self._at("search: asked")
        self._judge(found)
        if not isinstance(found, Failure):
            self._take_in_strays(found, row.key)
        change = after.after_search(row, found, _now(row, began), self._timing, _jitter())
        if change.columns.get("state") == "submitted":
            _log.info("remote batch %d was created as %s: it is adopted", row.id, change.columns["remote_id"])
            count("remote_batches", 1, "adopted")
        return change

    def _delete_input(self, row: RemoteBatch, step: DeleteInput) -> Change:
        began = time.monotonic()
        answer = self._server.delete_file(step.file_id) if step.file_id else None
        self._at("delete: asked")
        self._judge(answer)
        return after.after_delete(row, answer, _now(row, began), self._timing, _jitter())

    def _look(self, row: RemoteBatch, step: Look) -> Change:
        began = time.monotonic()
        with operation("openai.look"):
            answers = {remote_id: self._server.cancel(remote_id) for remote_id in step.cancel}
            # What cannot be cancelled may have ended.
            unsure = [remote_id for remote_id, answer in answers.items() if isinstance(answer, Failure)]
            answers |= {remote_id: self._server.retrieve(remote_id) for remote_id in (*step.ask, *unsure)}
        self._at("look: asked")
        self._judge(*answers.values())
        return after.after_look(row, answers, _now(row, began), self._timing, _jitter())

    def _read(self, row: RemoteBatch, step: Read, progress: Progress) -> tuple[RemoteBatch, Change]:
        row = self._intend(row, step.commit, "read")
        began = time.monotonic()
        harvest = Harvest(self._ledger, self._server, self._cost, self._settings.harvest_lines, progress, self._at)
        read = harvest.read(row, step.files)
        self._at("read: asked")
        self._judge(*read.failures)
        change = after.after_read(
            read.row,
            answered=read.row.inputs - read.unanswered,
            torn=read.torn,
            failures=read.failures,
            now=_now(row, began),
            timing=self._timing,
            jitter=_jitter(),
        )
        return read.row, change

    def _clean(self, row: RemoteBatch, step: Clean, progress: Progress) -> Change:
        began = time.monotonic()
        failures: list[Failure] = []
        if not self._settings.keep_files:
            file_ids = list(step.files)
            found = self._server.files_since(since(row.created_at), progress) if step.search else []
            if isinstance(found, Failure):
                failures.append(found)
            else:
                named = (file for file in found if is_file_of(row.key, str(file.get("filename", ""))))
                file_ids += [str(file["id"]) for file in named if file["id"] not in file_ids]
            for file_id in file_ids:
                progress()
                answer = self._server.delete_file(file_id)
                self._at("clean: asked")
                if answer is not None:
                    failures.append(answer)
        duplicates: list[Batch] = []
        if step.search and not failures:
            # It was created more than once, or may have been. Asked for before it is closed: nobody would ask after.
            listed = self._server.batches_since(since(row.created_at), progress)
            if isinstance(listed, Failure):
                failures.append(listed)
            else:
                duplicates = [batch for batch in listed if key_of(batch.get("metadata")) == row.key]
        self._judge(*failures)
        change = after.after_clean(row, failures, _now(row, began), self._timing, _jitter())
        return replace(change, found=tuple(duplicates))

    # -- committing --------------------------------------------------------------------------------------------------

    def _intend(self, row: RemoteBatch, change: Change | None, name: str) -> RemoteBatch:
        """Commits what is about to be asked for."""
        if change is not None:
            row = self._commit(row, change)
        self._at(f"{name}: intended")
        return row

    def _commit(self, row: RemoteBatch, change: Change) -> RemoteBatch:
        """One transaction: the row, what becomes of its texts where that is decided now, and, where the next step is
        later, the claim is handed back."""
        columns = dict(change.columns)
        moved = columns.get("state", row.state) != row.state
        columns.setdefault("tries", min(row.tries + 1, _MOST_TRIES) if change.failed else 0)
        if moved:
            columns.setdefault("error", None)
        with self._ledger.transaction() as connection:
            changed = remote.change(connection, row, **columns)
            if change.settle:
                changed = self._settle(connection, changed)
            changed = self._take_in(connection, changed, change.found)
            if change.seconds > 0:
                # What was known when the step began: a cancellation that came meanwhile is something to do now.
                remote.release(connection, replace(changed, cancel_reason=row.cancel_reason), change.seconds)
        if moved:
            if event := _EVENTS.get(changed.state):
                count("remote_batches", 1, event)
            _log.info(
                "remote batch %d is %s%s", row.id, changed.state, f" ({changed.status})" if changed.status else ""
            )
        if change.failed:
            _log.warning("remote batch %d: %s; again in %.0f s", row.id, changed.error, change.seconds)
        return changed

    def _hand_back(self, row: RemoteBatch, seconds: float) -> None:
        with self._ledger.transaction() as connection:
            remote.release(connection, row, seconds)

    def _settle(self, connection: Connection, row: RemoteBatch) -> RemoteBatch:
        """Decides about every text that has no vector: wanted again, or given up."""
        left = remote_items.left(connection, row.id)
        status = row.status or ""
        decided = verdicts(
            [Item(item.key, item.attempts, item.outcome, item.error or "") for item in left],
            status=status,
            remote=row.remote,
            inputs=row.inputs,
            error=row.error,
        )
        attempts = {item.key: item.attempts for item in left}
        dead = [key for key, verdict in decided.items() if verdict.fate == "dead"]
        _, order = read_order(row.spec)
        rate = spending.cost_of(self._cost, order.model, PROVIDER, 1)
        missing = {item.key: item.tokens for item in left if item.outcome is None}
        answered = row.done + sum(item.outcome in ANSWERED for item in left)
        doubtful = doubts(connection, row, missing, rate) if _may_be_paid(row, answered) else []
        remote_items.put_back(
            connection,
            row.id,
            [
                remote_items.Verdict(
                    key,
                    remote_items.MOST_ATTEMPTS if verdict.fate == "dead" else attempts[key] + int(verdict.blamed),
                    verdict.reason,
                )
                for key, verdict in decided.items()
            ],
        )
        spending.record(connection, doubtful)
        purchases.wake(connection, dead)
        count("remote_texts", len(dead), "dead")
        count("remote_texts", len(decided) - len(dead), "again")
        return remote.change(
            connection,
            row,
            failed=row.failed + len(left) - len(missing),
            missing=row.missing + (len(missing) if batches_of(row) else 0),
            cost=row.cost + sum(used.doubtful_cost for used in doubtful),
            doubtful=row.doubtful or bool(doubtful),
        )

    # -- duplicates --------------------------------------------------------------------------------------------------

    def _take_in(self, connection: Connection, row: RemoteBatch, duplicates: Sequence[Batch]) -> RemoteBatch:
        """What was found under the key of a batch that is closed with this transaction is cancelled, and harvested."""
        for batch in duplicates if row.state == "closed" else ():
            if (reopened := after.found_stray(row, batch)) is not None:
                _log.warning("remote batch %d has a duplicate at the server: %s", row.id, batch.get("id"))
                row = remote.change(connection, row, **reopened.columns)
        return row

    def _take_in_strays(self, found: Sequence[Batch], own: str) -> None:
        """Batches of other rows in a list: duplicates that those do not know."""
        for batch in found:
            key = key_of(batch.get("metadata"))
            if key is None or key == own:
                continue
            with self._ledger.transaction() as connection:
                row = remote.by_key(connection, key)
                if row is not None and (change := after.found_stray(row, batch)) is not None:
                    _log.warning("remote batch %d has a duplicate at the server: %s", row.id, batch.get("id"))
                    remote.reopen(connection, row, **change.columns)

    # -- the circuit -------------------------------------------------------------------------------------------------

    def _judge(self, *answers: Any) -> None:
        """Tells all of a key that is rejected or an account without money, and that this is over."""
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        telling = next((failed for failed in failures if failed.kind in _CAUSES), None)
        with self._ledger.transaction() as connection:
            if telling is not None:
                circuits.trip(connection, circuits.OPENAI, f"{_OURS}{telling.message}", cause=_CAUSES[telling.kind])
            elif len(failures) < len(answers):
                found = circuits.find(connection, circuits.OPENAI)
                # What online requests were told is theirs to take back: it may hold for them alone.
                if found is not None and found.error.startswith(_OURS):
                    circuits.close(connection, circuits.OPENAI)


def _may_be_paid(row: RemoteBatch, answered: int) -> bool:
    """Whether texts that have neither vector nor outcome may have been paid for. answered: lines that were read, of
    those that the server counts as completed."""
    batches: list[Mapping[str, Any]] = batches_of(row)
    completed = max((completed_of(batch) for batch in batches), default=0)
    return completed > answered or any(status_of(batch) in {"completed", "gone"} for batch in batches)


def _now(row: RemoteBatch, began: float) -> datetime:
    """By the database's clock: the row was read when the step began."""
    return row.now + timedelta(seconds=time.monotonic() - began)


def _jitter() -> float:
    return random.random()  # noqa: S311 - so that batches that were begun together are not asked for together
