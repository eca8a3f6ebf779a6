"""One child process that reads documents: started, fed, watched while it works, and killed where it goes too far."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import psutil

from pipeline.errors import ExtractionFailed, ExtractionOverLimit, ExtractorUnavailable, InvalidDocument
from pipeline.extract import Extracted, Raw
from pipeline.extract.isolation.answers import extracted, invalid, too_much_memory, too_much_text, too_much_time
from pipeline.extract.isolation.wire import BrokenFrame, Frame, Frames, Header, pack
from pipeline.observe import logger
from pipeline.scratch import Scratch
from pipeline.settings import ExtractionSettings

PROGRAM = (sys.executable, "-P", "-m", "pipeline.extract.isolation.child")

AHEAD = 8  # documents that are sent before the first of them is answered
LOOK_SECONDS = 0.05
# A document that waits for something rather than computes, or a machine so busy that it gets a tenth of a core.
WALL_FACTOR = 10
START_SECONDS = 60.0
LEAVE_SECONDS = 2.0
# Time in which this process itself was stopped is not the document's.
_LONGEST_LOOK = 1.0
_READ_BYTES = 256 * 1024
_SAID_BYTES = 4000  # of what a child wrote to stderr that go to the log, at most, for one document
_MB = 1024 * 1024
# What a reader may see of the environment: no address, key or password of ours is among it.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
_ENVIRONMENT_PREFIXES = ("LC_", "PYTHON", "DYLD_", "COVERAGE_PROCESS_")

_log = logger("extract")


class Lost(Exception):
    """The child is gone, or of no use any more, and `reason` says why.

    certain: whether the document is known to be to blame, so that there is no use in trying it again.
    """

    def __init__(self, reason: InvalidDocument, *, certain: bool) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.certain = certain


class ChildProcess:
    """A child process. Not for several threads at once. Raises ExtractorUnavailable where it does not start."""

    def __init__(self, settings: ExtractionSettings, program: Sequence[str], progress: Callable[[], None]) -> None:
        self._settings = settings
        self._progress = progress
        self._progressed = time.monotonic()
        self.answered = 0
        self._unanswered: deque[Raw] = deque()
        self._arrived: deque[Frame] = deque()
        self._unsent: deque[memoryview] = deque()
        self._frames = Frames(settings.max_text_bytes)
        self._said = bytearray()
        self._ended = False
        self._dead = False
        self._watch = _Watch()
        read_end, self._lifeline = os.pipe()
        options = {
            "--parent": os.getpid(),
            "--lifeline": read_end,
            "--cpu-seconds": settings.cpu_seconds,
            "--memory-mb": settings.memory_mb,
            "--max-text-bytes": settings.max_text_bytes,
        }
        try:
            # What a reader that is killed leaves of its temporary files goes with this.
            self._scratch = Scratch()
        except OSError as error:
            os.close(read_end)
            os.close(self._lifeline)
            raise ExtractorUnavailable(f"there is no directory for temporary files: {error}") from error
        try:
            # A session of its own: what is typed at a terminal or sent to a group of processes is for the worker.
            self._process = subprocess.Popen(
                [*program, *(str(part) for option in options.items() for part in option)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                pass_fds=(read_end,), env=_environment(self._scratch), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(self._lifeline)
            self._scratch.close()
            raise ExtractorUnavailable(f"no process can be started that reads documents: {error}") from error
        finally:
            os.close(read_end)
        self._selector = selectors.DefaultSelector()
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout, self._process.stderr) if pipe]
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in self._pipes)
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)
        self._feeding = False
        try:
            self._await_start()
        except BaseException:
            self.kill()
            raise

    # -- documents -----------------------------------------------------------------------------------------------

    def read(self, documents: Sequence[Raw], progress: Callable[[], None]) -> Iterator[Extracted | InvalidDocument]:
        """What each of them holds, in order; ends early where the child does, between two of them.

        Raises Lost, for the first that has no answer yet.
        """
        self._progress = progress
        unsent = deque(documents)
        self._watch = _Watch()
        while unsent or self._unanswered:
            while unsent and len(self._unanswered) < AHEAD:
                self._send(unsent.popleft())
            self._turn()
            while self._arrived:
                yield self._outcome(*self._arrived.popleft())
            if self._ended:
                if self._unanswered:
                    raise self._death()
                return  # it has answered for everything it had

    def idle(self) -> bool:
        """Whether it lives and has nothing to do."""
        return not self._dead and not self._ended and not self._unanswered

    def alive(self) -> bool:
        return not self._dead and self._process.poll() is None

    def memory_mb(self) -> float:
        """Resident memory; 0 where it cannot be told."""
        try:
            return psutil.Process(self._process.pid).memory_info().rss / _MB
        except psutil.Error:
            return 0.0

    def leave(self) -> None:
        """Lets a process that has nothing to do end by itself."""
        if not self._dead:
            self._pipes[0].close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LEAVE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends the process and forgets what it was doing."""
        if self._dead:
            return
        self._dead = True
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._scratch.close()
        self._selector.close()
        os.close(self._lifeline)
        for pipe in self._pipes:
            pipe.close()
        self._unanswered.clear()
        self._arrived.clear()
        self._unsent.clear()

    # -- talking -------------------------------------------------------------------------------------------------

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._arrived and not self._ended:
            if time.monotonic() > deadline:
                raise ExtractorUnavailable(f"the process that reads documents did not start in {START_SECONDS:g} s")
            self._turn()
        if not self._arrived or not self._arrived.popleft()[0].get("ready"):
            said = self._said.decode("utf-8", "replace").strip()
            raise ExtractorUnavailable(f"the process that reads documents does not start: {said or 'it said nothing'}")

    def _send(self, document: Raw) -> None:
        self._unanswered.append(document)
        header: Header = {
            "id": self.answered + len(self._unanswered),
            "media_type": document.media_type,
            "uri": document.uri,
            "payload_bytes": len(document.data),
        }
        self._unsent.append(memoryview(pack(header)))
        if document.data:
            self._unsent.append(memoryview(document.data))

    def _turn(self) -> None:
        """Writes what can be written, reads what there is, or waits a moment; looks after the child."""
        if bool(self._unsent) is not self._feeding:
            self._feeding = not self._feeding
            if self._feeding:
                self._selector.register(self._stdin, selectors.EVENT_WRITE)
            else:
                self._selector.unregister(self._stdin)
        for key, _ in self._selector.select(LOOK_SECONDS):
            if key.fd == self._stdin:
                self._write()
            elif key.fd == self._stdout:
                self._receive()
            else:
                self._listen()
        now = time.monotonic()
        if now - self._progressed >= LOOK_SECONDS:
            self._progressed = now
            self._progress()
        if self._unanswered and not self._arrived and not self._ended:
            self._look(now)

    def _write(self) -> None:
        try:
            while self._unsent:
                written = os.write(self._stdin, self._unsent[0])
                if written == len(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][written:]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent.clear()  # it died; stdout ends too, and tells what it still had to say

    def _receive(self) -> None:
        try:
            data = os.read(self._stdout, _READ_BYTES)
            if data:
                self._arrived.extend(self._frames.feed(data))
        except BlockingIOError:
            return
        except BrokenFrame as error:
            _log.warning("the process that reads documents answered %s", error)
            data = b""
        if not data:
            self._ended = True

    def _listen(self) -> None:
        try:
            while data := os.read(self._stderr, _READ_BYTES):
                self._said += data
                del self._said[:-_SAID_BYTES]
        except BlockingIOError:
            return
        with suppress(KeyError):
            self._selector.unregister(self._stderr)

    def _quote(self, uri: str) -> None:
        """What was said on stderr goes to the log."""
        if self._said:
            _log.warning("while it read %s: %s", uri, self._said.decode("utf-8", "replace").strip())
            self._said.clear()

    # -- judging -------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Measures the child. Raises Lost where it has passed a limit with the document that it is reading."""
        if now - self._watch.looked < LOOK_SECONDS:
            return
        self._watch.waited += min(now - self._watch.looked, _LONGEST_LOOK)
        self._watch.looked = now
        uri, limits = self._unanswered[0].uri, self._settings
        try:
            process = psutil.Process(self._process.pid)
            resident, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error:
            return  # it has just died, which the end of its pipe tells
        if resident > limits.memory_mb * _MB:
            # One that has read others may still hold what they took; a fresh one does not.
            raise self._over(too_much_memory(uri, limits), certain=self.answered == 0)
        if self._watch.cpu is None:
            self._watch.cpu = times.user + times.system
        used = times.user + times.system - self._watch.cpu
        if used > limits.cpu_seconds:
            raise self._over(too_much_time(uri, limits))
        if self._watch.waited > limits.cpu_seconds * WALL_FACTOR:
            raise self._over(
                ExtractionOverLimit(
                    f"{uri} was given up after {self._watch.waited:.0f} s, of which its reader computed {used:.0f}; "
                    f"{WALL_FACTOR} times MILLRACE_EXTRACTION__CPU_SECONDS is the limit"
                )
            )

    def _over(self, reason: InvalidDocument, *, certain: bool = True) -> Lost:
        self._quote(self._unanswered[0].uri)
        self.kill()
        return Lost(reason, certain=certain)

    def _outcome(self, header: Header, payload: bytes) -> Extracted | InvalidDocument:
        """The answer to the first unanswered document."""
        document = self._unanswered[0]
        self._quote(document.uri)
        error = header.get("error")
        if header.get("id") != self.answered + 1:
            raise self._broken(document, "it answered something else")
        outcome: Extracted | InvalidDocument
        if error == "memory":
            raise self._over(too_much_memory(document.uri, self._settings), certain=self.answered == 0)
        if error == "text":
            outcome = too_much_text(document.uri, self._settings)
        elif error is not None:
            outcome = invalid(str(error), str(header.get("message") or f"{document.uri} cannot be read"))
        else:
            try:
                outcome = extracted(header, payload)
            except (KeyError, TypeError, ValueError) as wrong:
                raise self._broken(document, f"its answer cannot be used ({wrong})") from wrong
        self._unanswered.popleft()
        self.answered += 1
        self._watch = _Watch()
        return outcome

    def _broken(self, document: Raw, how: str) -> Lost:
        self.kill()
        return Lost(
            ExtractionFailed(f"{document.uri} cannot be read: its reader broke down on it, {how}"), certain=False
        )

    def _death(self) -> Lost:
        """The child ended by itself, or was killed by somebody else."""
        document = self._unanswered[0]
        self._listen()
        self._quote(document.uri)
        with suppress(ProcessLookupError):
            self._process.kill()  # no more than its pipe may have ended
        code = self._process.wait()
        self.kill()
        if code == -signal.SIGXCPU:
            return Lost(too_much_time(document.uri, self._settings), certain=True)
        how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with status {code}"
        if code == -signal.SIGKILL:
            how += ", by somebody or for want of memory"
        return Lost(ExtractionFailed(f"{document.uri} cannot be read: the process that read it {how}"), certain=False)


class _Watch:
    """What is known of the document that is being read: seconds waited for it, and the child's CPU time at first."""

    def __init__(self) -> None:
        self.looked = time.monotonic()
        self.waited = 0.0
        self.cpu: float | None = None


def _environment(scratch: Scratch) -> dict[str, str]:
    """What a reader sees: some of what this process does, and a directory of its own for temporary files."""
    seen = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    return {**seen, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch.path))}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
