"""Ray as the engine of a command: connecting to a cluster, and a pool of actors that work on pieces.

Ray decides on which machine an actor or a task runs, starts tasks of dead machines again, moves their results, and
adds machines; this module only says how many pieces are under way at once. Nothing here imports Ray before a command
that asks for it runs. The command's own process, the driver, may die at any moment: what it has written is kept, and
the same command resumes.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from titokctl.distributed.place import available_cores
from titokctl.errors import UsageError, UserError, fault_in_words, install

PieceT = TypeVar("PieceT")
T = TypeVar("T")
_TRIES = 3  # actors that may die over one piece
_POLL_S = 0.2
_ANSWER_S = 10.0
_PATIENCE_S = 30.0  # until the user is informed that no actor has started
# Tasks that Ray ends because a machine's memory is short are not started again for ever.
_SETTINGS = {"RAY_task_oom_retries": "2", "RAY_TQDM_PATCH_PRINT": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def check_installed() -> None:
    """Raise UserError, which says what to install, where Ray is missing."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("Ray is not installed", install("ray"))


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster, and how many actors of a command it may run.

    Args:
        address: of a running cluster, as for `ray.init`: "auto", "host:port" or "ray://host:port"; None starts a
            cluster on this machine, which ends with the command.
        min_workers: actors that are started at once.
        max_workers: actors at most; None for one per GPU of the cluster, or per CPU if it has no GPUs.
        device: "cpu" or "cuda", where the actors compute; None for "cuda" if the cluster has GPUs.

    Raises UsageError for numbers that don't fit each other.
    """

    address: str | None = None
    min_workers: int = 1
    max_workers: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.min_workers < 1:
            raise UsageError(f"--min-workers must be at least 1, not {self.min_workers}", "leave it out for 1")
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise UsageError(
                f"--max-workers {self.max_workers} is less than --min-workers {self.min_workers}",
                f"e.g. --max-workers {self.min_workers}",
            )
        if self.device not in (None, "cpu", "cuda"):
            raise UsageError(
                f"--device {self.device} names one GPU, but Ray assigns GPUs to its workers",
                "leave it out, or say cuda",
            )

    @contextlib.contextmanager
    def connected(self) -> "Iterator[Connection]":
        """Connect to the cluster, or start one. A program that has called `ray.init` keeps its own connection.

        Raises UserError when Ray is missing or the cluster can't be reached.
        """
        check_installed()
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        import ray

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        if ray.is_initialized():
            yield self._connection(ray)
            return
        with contextlib.ExitStack() as stack:
            # Ray prints its remarks to stdout, which is for results, and sets handlers of signals.
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            with _own_signals():
                self._connect(ray, stack)
            stack.callback(ray.shutdown)
            yield self._connection(ray)

    def _connect(self, ray: Any, stack: contextlib.ExitStack) -> None:
        common = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.CRITICAL}
        if self.address is not None:
            try:
                _check_answers(self.address)
                ray.init(address=self.address, **common)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(
                    f"no Ray cluster answers at {self.address}: {reason[0]}", "start one with: ray start --head"
                ) from error
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="titokctl-", ignore_cleanup_errors=True))
        cpus = max(available_cores(), self.max_workers or 0, self.min_workers)
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **common)
        except Exception as error:  # Ray raises plain ones; it waits half a minute for its processes
            ray.shutdown()
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = "the machine may be too busy: run the same command again, or use a running cluster with --address"
            raise UserError(f"Ray did not start on this machine: {why}", hint) from error

    def _connection(self, ray: Any) -> "Connection":
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        device = self.device or ("cuda" if gpus else "cpu")
        largest = self.max_workers or max(gpus if device == "cuda" else cpus, self.min_workers)
        return Connection(device, self.min_workers, largest, max(cpus, 1))


@dataclass(frozen=True)
class Connection:
    """A cluster that can be used.

    Args:
        device: "cpu" or "cuda", where actors compute.
        smallest, largest: numbers of actors.
        cpus: CPUs of the cluster when the connection was made.
    """

    device: str
    smallest: int
    largest: int
    cpus: int

    @property
    def actor_options(self) -> dict[str, Any]:
        """Options of Ray for an actor that computes: a GPU of its own, and machines in turn.

        On CPUs it reserves none, so that tasks which prepare its work can't be locked out by actors that wait for them.
        """
        gpus = 1 if self.device == "cuda" else 0
        return {"num_gpus": gpus, "num_cpus": 0, "max_restarts": 0, "scheduling_strategy": "SPREAD"}

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function of a module on a machine like those of the actors: on one with a GPU if they have GPUs."""
        if self.device != "cuda":
            return function(*arguments)
        import ray

        found: T = result_of(ray.remote(function).options(num_gpus=1, num_cpus=1).remote(*arguments))
        return found


@dataclass(frozen=True)
class Stages(Generic[PieceT]):
    """The calls that take one piece of work through a pool of actors.

    Args:
        start: starts an actor; `actor.prepare.remote()` is awaited before it gets a piece.
        begin: starts the task that prepares a piece, and returns the references of its two results: a small one, and
            what an actor needs. Its second argument is True for a piece whose task died in spite of Ray's retries.
            None without such a task.
        work: gives a piece, and what was prepared for it, to an actor, and returns the reference of the result.
        name: the name of a piece in messages.
    """

    start: Callable[[], Any]
    begin: Callable[[PieceT, bool], tuple[Any, Any]] | None
    work: Callable[[Any, PieceT, Any], Any]
    name: Callable[[PieceT], str]


class ActorPool(Generic[PieceT]):
    """Actors that work on pieces, one piece at a time each; more are started while prepared pieces wait.

    Args:
        connection: the cluster.
        stages: of the pieces.
        check: called while waiting; may raise to end the work.
        say: reports actors that died.
    """

    def __init__(
        self,
        connection: Connection,
        stages: Stages[PieceT],
        check: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._connection, self._stages, self._check, self._say = connection, stages, check, say
        self._starting: dict[Any, Any] = {}  # reference of `prepare` -> actor
        self._free: list[Any] = []
        self._begun: dict[Any, tuple[PieceT, Any, Any]] = {}
        self._ready: deque[tuple[PieceT, Any]] = deque()
        self._working: dict[Any, tuple[PieceT, Any]] = {}
        self._deaths: dict[str, int] = {}
        self._recovering: set[str] = set()
        self._warned = False

    def results(self, pieces: Iterator[PieceT]) -> Iterator[tuple[PieceT, Any]]:
        """Yield every piece with its result, in the order in which they become finished.

        A piece is taken from `pieces` only when it can be begun, so that few are in memory (back-pressure).

        Raises UserError of a task or an actor, and for a piece over which three actors died.
        """
        import ray

        since = time.monotonic()
        left: Iterator[PieceT] | None = pieces
        while True:
            left = self._begin_more(left)
            if not (self._begun or self._working or self._ready):
                return
            self._resize(is_last=left is None)
            self._hand_out()
            waiting = [*self._begun, *self._working, *self._starting]
            found, _ = ray.wait(waiting, num_returns=1, timeout=_POLL_S, fetch_local=False)
            self._check()
            for reference in found:
                yield from self._received(reference)
            if self._starting and not (self._free or self._working):
                self._warn_of_waiting(since)

    def _begin_more(self, pieces: Iterator[PieceT] | None) -> Iterator[PieceT] | None:
        """Begin as many pieces as may run at once. Returns None once all have begun."""
        actors = len(self._free) + len(self._working) + len(self._starting)
        ahead = max(actors, self._connection.smallest) + (self._connection.cpus if self._stages.begin else 0)
        while pieces is not None and len(self._begun) + len(self._ready) < ahead:
            piece = next(pieces, None)
            if piece is None:
                return None
            self._begin(piece)
        return pieces

    def _begin(self, piece: PieceT) -> None:
        if self._stages.begin is None:
            self._ready.append((piece, None))
            return
        done, prepared = self._stages.begin(piece, self._stages.name(piece) in self._recovering)
        self._begun[done] = piece, done, prepared

    def _resize(self, is_last: bool) -> None:
        """Start actors that are needed; let go of free ones when no pieces are left for them."""
        count = len(self._free) + len(self._working) + len(self._starting)
        wanted = self._connection.smallest
        if self._ready and not self._free and not self._starting:
            wanted = count + 1
        for _ in range(min(wanted, self._connection.largest) - count):
            actor = self._stages.start()
            self._starting[actor.prepare.remote()] = actor
        if is_last:
            del self._free[len(self._begun) + len(self._ready) :]

    def _hand_out(self) -> None:
        while self._free and self._ready:
            (piece, prepared), actor = self._ready.popleft(), self._free.pop()
            self._working[self._stages.work(actor, piece, prepared)] = piece, actor

    def _received(self, reference: Any) -> Iterator[tuple[PieceT, Any]]:
        import ray.exceptions as lost

        if reference in self._starting:
            actor = self._starting.pop(reference)
            try:
                result_of(reference, "while starting")
            except lost.RayError as error:
                self._count_death("start of a worker", "while starting", error)
            else:
                self._free.append(actor)
        elif reference in self._begun:
            self._prepared(*self._begun.pop(reference))
        else:
            piece, actor = self._working.pop(reference)
            try:
                result = result_of(reference, f"while it worked on {self._stages.name(piece)}")
            except lost.RayError as error:
                name = self._stages.name(piece)
                self._count_death(name, f"while it worked on {name}", error)
                self._begin(piece)
                return
            self._free.append(actor)
            yield piece, result

    def _prepared(self, piece: PieceT, done: Any, prepared: Any) -> None:
        import ray.exceptions as lost

        name = self._stages.name(piece)
        try:
            result_of(done, f"while it decoded {name}")
        except lost.RayError as error:
            if name in self._recovering:
                raise UserError(
                    f"the task that decodes {name} died again and again: {_reason(error)}",
                    "finished parts are kept; run the same command again, or check the images of that unit",
                ) from error
            self._recovering.add(name)
            self._say(f"the task that decodes {name} died ({_reason(error)}): its images are decoded one by one")
            self._begin(piece)
        else:
            self._ready.append((piece, prepared))

    def _count_death(self, name: str, when: str, error: Exception) -> None:
        self._deaths[name] = count = self._deaths.get(name, 0) + 1
        reason = _reason(error)
        if count >= _TRIES:
            raise UserError(
                f"{count} workers died {when}: {reason}",
                "finished parts are kept; give workers more memory, or encode fewer images at once with --batch-size",
            ) from error
        self._say(f"a worker died {when} ({reason}); another one repeats its work")

    def _warn_of_waiting(self, since: float) -> None:
        if not self._warned and time.monotonic() - since > _PATIENCE_S:
            self._warned = True
            lacks = "no free GPU" if self._connection.device == "cuda" else "too little memory"
            self._say(f"no worker has started yet: the cluster is busy, or has {lacks}")


def result_of(reference: Any, during: str = "") -> Any:
    """Return the result of a task.

    Args:
        during: words for the work, in the message about a fault of the task's machine.

    Raises the task's own UserError as it was, UserError for a fault of its machine, such as a full memory, and RayError
    when its process died.
    """
    import ray
    import ray.exceptions as lost

    try:
        return ray.get(reference)
    except lost.RayTaskError as error:
        if isinstance(error.cause, lost.RayError | UserError):
            raise error.cause from None
        if fault := fault_in_words(error.cause or error):
            raise UserError(f"a worker failed{during and f' {during}'}: {fault.message}", fault.hint) from None
        raise RuntimeError(str(error)) from None


def check_machine(expected: Mapping[str, Any], here: Mapping[str, Any], makes: str) -> None:
    """Raise UserError, which lists the differences, if this machine would make other rows or images than the driver's.

    Args:
        expected, here: everything that decides about the bytes, by name, of the driver and of this machine.
        makes: a word for what is made.
    """
    others = [f"{name} {here.get(name)}, not {value}" for name, value in expected.items() if here.get(name) != value]
    if others:
        raise UserError(
            f"the machine {os.uname().nodename} would make other {makes}: it has {'; '.join(others)}",
            "install the same versions on all machines, and use machines of one kind",
        )


def _reason(error: Exception) -> str:
    """Return in words why a process of Ray died, as far as Ray knows."""
    import ray.exceptions as lost

    text = str(error)
    if isinstance(error, lost.OutOfMemoryError) or "running low on memory" in text:
        return "its machine ran out of memory"
    if isinstance(error, lost.NodeDiedError) or ("node" in text and "died" in text.split("\n")[0]):
        return "its machine was lost"
    return "its process was killed, perhaps because memory ran out"


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _ANSWER_S).close()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the signal handlers of this process, in place of which Ray sets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not in the main thread, where Ray sets none either
                signal.signal(number, handler)
