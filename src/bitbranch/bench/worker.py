"""Processes that each hold one executor and answer one call at a time: one JSON line in, one JSON line out.

A process for each executor keeps their thread pools, their OpenMP runtimes and the environment variables that limit
their instruction sets apart, and a crash or a hang ends that executor alone. Between its turns a worker is stopped
by a signal: idle threads that spin for new work would slow down whoever has the turn.

The child's side is :func:`serve`; ``python -m bitbranch.bench.worker`` runs it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from ..errors import BitbranchError

START_LIMIT = 600.0
"""Seconds that an executor may take to get ready, unless it is told otherwise."""
CALL_LIMIT = 120.0
"""Seconds that any other call may take."""
LAST_WORDS = 300
"""Characters of a dead worker's standard error that are reported."""
PR_SET_PDEATHSIG = 1


class WorkerFailure(BitbranchError):
    """A worker that raised an error, died, or did not answer in time; the text says which."""


class Worker:
    """A child process with one object in it.

    Args:
        make: ``"module:name"``, a class or function that makes the object.
        arguments: its keyword arguments, as JSON takes them.
        cpus: processors that the child may run on; ``None``: all that this process may use.
        environment: added to this process's environment.
        stopped: whether to stop the process by a signal between calls.
        limit: seconds for making the object.

    Raises:
        WorkerFailure: the object was not made.
    """

    def __init__(
        self,
        make: str,
        arguments: Mapping[str, Any],
        *,
        cpus: Sequence[int] | None = None,
        environment: Mapping[str, str] | None = None,
        stopped: bool = True,
        limit: float = START_LIMIT,
    ) -> None:
        self.make, self.stopped = make, stopped and hasattr(signal, "SIGSTOP")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            self._ask({"make": make, "arguments": dict(arguments), "cpus": cpus}, limit)
        except BaseException:
            self.close()
            raise
        self._pause()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, limit: float = CALL_LIMIT, **arguments: Any) -> Any:
        """Call a method of the object.

        Args:
            method: its name.
            limit: seconds after which the worker is given up.
            arguments: of the method, as JSON takes them.

        Returns:
            What the method returns, through JSON.

        Raises:
            WorkerFailure: the method raised an error (the worker lives on), or the worker died or was given up.
        """
        self._resume()
        answer = self._ask({"method": method, "arguments": arguments}, limit)
        self._pause()
        return answer

    def close(self) -> None:
        """End the process, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _pause(self) -> None:
        if self.stopped:
            self._process.send_signal(signal.SIGSTOP)

    def _resume(self) -> None:
        if self.stopped:
            self._process.send_signal(signal.SIGCONT)

    def _ask(self, request: Mapping[str, Any], limit: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(time.monotonic() + limit)
        except (BrokenPipeError, ValueError):
            line = b""
        if line is None:
            self.close()
            raise WorkerFailure(f"no answer within {limit:g} s")
        if not line:
            raise WorkerFailure(self._how_it_died())
        answer = json.loads(line)
        if "error" in answer:
            self._pause()
            raise WorkerFailure(answer["error"])
        return answer["result"]

    def _line(self, deadline: float) -> bytes | None:
        """The next line; empty at the end of the stream, ``None`` when time is up."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return b""
                self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _how_it_died(self) -> str:
        if self._errors.closed:
            return "the process had ended"
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.close()
            return "the process closed its output"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._errors.seek(0)
        said = " ".join(self._errors.read().decode(errors="replace").split())[-LAST_WORDS:]
        self.close()
        return f"the process ended by {how}" + (f": {said}" if said else "")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The child's side: make the object that the first line asks for, then call its methods until the end of input."""
    target: Any = None
    for line in requests:
        request = json.loads(line)
        try:
            if "make" in request:
                if request["cpus"] is not None:
                    os.sched_setaffinity(0, request["cpus"])
                module, name = request["make"].split(":")
                target = getattr(importlib.import_module(module), name)(**request["arguments"])
                result = None
            else:
                result = getattr(target, request["method"])(**request["arguments"])
            answer = {"result": result}
        except Exception as error:  # whatever a peer raises is its reason for not being measured
            text = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {text[:LAST_WORDS]}" if text else type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, stopped or not."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve standard input; what libraries print to standard output goes to standard error."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
