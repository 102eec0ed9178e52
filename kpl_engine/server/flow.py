"""The lines between the stages, and the one lock over them. A request leaves once, whoever is first to end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from kpl_engine.arrays import Float32
from kpl_engine.encoder.pipeline import Prepared
from kpl_engine.errors import DeadlineExceededError, NotReadyError
from kpl_engine.server.batcher import Batcher, Line
from kpl_engine.server.deadlines import Deadlines
from kpl_engine.server.parts import Lane, Model
from kpl_engine.server.requests import Reply
from kpl_engine.server.ticket import Job, Picture

__all__ = ["Flow", "Outcome"]

Outcome = Reply | Exception
_MOST_SOLVED = 256  # requests in one call of the solver


class Flow:
    """What is in flight. Methods named ``take_*`` wait for work, and return None when the server closes.

    Nothing is called back under the lock: futures, observers and models may call the service again.

    Parameters
    ----------
    clock : callable
        Seconds, monotonic.
    settle : callable
        Told each request that ended, once, with its reply or error.
    release : callable
        Told each request whose model nobody uses any more, once.
    """

    def __init__(
        self, clock: Callable[[], float], settle: Callable[[Job, Outcome], None], release: Callable[[Model], None]
    ) -> None:
        self._clock, self._settle, self._release = clock, settle, release
        self._lock = threading.Lock()
        self._decode_ready = threading.Condition(self._lock)
        self._encode_ready = threading.Condition(self._lock)
        self._solve_ready = threading.Condition(self._lock)
        self._deadline_nearer = threading.Condition(self._lock)
        self._emptier = threading.Condition(self._lock)
        self._to_decode: Line[Picture] = Line()
        self._to_encode: Batcher[Picture] = Batcher()
        self._to_solve: Line[Job] = Line()
        self._jobs: dict[int, Job] = {}
        self._deadlines = Deadlines(self._jobs)
        self._arrivals = 0
        self._is_closed = False
        self.num_decoding = 0
        self._queued: dict[str, int] = {}  # images of each task that wait for the encoder; 0 once there were some

    @property
    def num_to_decode(self) -> int:
        """Pictures that wait for a decode thread or are on one."""
        return len(self._to_decode) + self.num_decoding

    @property
    def num_to_encode(self) -> int:
        """Pictures that wait for an encoder."""
        return len(self._to_encode)

    def queued_now(self) -> dict[str, int]:
        """Images of each task that wait for an encoder."""
        return self._queued.copy()

    def enter(self, job: Job, raw: Sequence[Picture], ready: Sequence[Picture]) -> None:
        """Take ``job`` in: ``raw`` pictures are decoded first, ``ready`` ones have the model's size."""
        with self._lock:
            if self._is_closed:
                raise NotReadyError("the server has stopped; send the request to another")
            job.arrival = self._arrivals = self._arrivals + 1
            self._jobs[job.arrival] = job
            if self._deadlines.add(job.deadline_s, job.arrival, len(self._jobs)):
                self._deadline_nearer.notify()
            job.num_to_decode = len(raw)
            for picture in raw:
                self._to_decode.put(picture, job.priority, job.arrival)
            self._decode_ready.notify(len(raw))
            for picture in ready:
                self._put_ready(picture)
            self._put_solvable(job)

    def take_raw(self) -> Picture | None:
        """The next picture to decode."""
        while True:
            with self._lock:
                while not self._is_closed and not len(self._to_decode):
                    self._decode_ready.wait()
                if self._is_closed:
                    return None
                taken, late = self._to_decode.take(1, self._clock())
                for picture in (*taken, *late):
                    picture.job.num_to_decode -= 1
                for picture in taken:
                    picture.job.num_holds += 1
                    self.num_decoding += 1
            self._expire([picture.job for picture in late])
            if taken:
                return taken[0]

    def decoded(self, picture: Picture, prepared: Prepared | Exception, start_s: float, end_s: float) -> None:
        """What became of a picture of `take_raw`."""
        job, fatal = picture.job, None
        with self._lock:
            self.num_decoding -= 1
            is_free = self._let_go(job)
            if not job.is_done:
                job.note_decode(start_s, end_s)
                if isinstance(prepared, Exception):
                    fatal = job.add_error(picture.index, prepared)
                elif prepared.pixels is None:
                    fatal = job.add_error(picture.index, prepared.error or ValueError("neither pixels nor an error"))
                else:
                    if prepared.notices:
                        job.add_notices(picture.index, prepared.notices)
                    picture.data = prepared.pixels
                    self._put_ready(picture)
                if fatal is None:
                    self._put_solvable(job)
        if is_free:
            self._release(job.model)
        if fatal is not None:
            self.finish(job, fatal)

    def take_batch(self, instance: int) -> tuple[Lane, list[Picture]] | None:
        """What encoder ``instance`` runs next."""
        while True:
            with self._lock:
                while (lane := self._to_encode.next_lane(instance)) is None and not self._is_closed:
                    self._encode_ready.wait()
                if self._is_closed or lane is None:
                    return None
                taken, late = self._to_encode.take(lane, self._clock())
                for picture in (*taken, *late):
                    picture.job.num_to_encode -= 1
                    self._count(picture.job, -1)
                for picture in taken:
                    picture.job.num_holds += 1
            self._expire([picture.job for picture in late])
            if taken:
                return lane, taken

    def encoded(
        self, pictures: Sequence[Picture], rows: Sequence[Float32 | Exception], start_s: float, end_s: float
    ) -> None:
        """Features of a batch of `take_batch`, or the error of a picture; those of a cancelled request are dropped."""
        fatal: list[tuple[Job, Exception]] = []
        free: list[Model] = []
        with self._lock:
            for picture, row in zip(pictures, rows, strict=True):
                job = picture.job
                if self._let_go(job):
                    free.append(job.model)
                if job.is_done:
                    continue
                job.note_encode(start_s, end_s)
                if not isinstance(row, Exception):
                    job.add_features(picture.index, row)
                elif (error := job.add_error(picture.index, row)) is not None:
                    fatal.append((job, error))
                    continue
                self._put_solvable(job)
        for model in free:
            self._release(model)
        for job, error in fatal:
            self.finish(job, error)

    def take_solvable(self) -> list[Job] | None:
        """All requests of one model and mode that wait for the solver, the first in line and its like."""
        while True:
            with self._lock:
                while not self._is_closed and not len(self._to_solve):
                    self._solve_ready.wait()
                if self._is_closed:
                    return None
                taken, late = self._to_solve.take(_MOST_SOLVED, self._clock())
                alike = [job for job in taken if job.model is taken[0].model and job.mode == taken[0].mode]
                if len(alike) < len(taken):
                    chosen = set(alike)
                    for job in taken:
                        if job not in chosen:
                            self._to_solve.put(job, job.priority, job.arrival)
                    self._solve_ready.notify()
                for job in (*alike, *late):
                    job.is_to_solve = False
                for job in alike:
                    job.num_holds += 1
            self._expire(late)
            if alike:
                return alike

    def finish(self, job: Job, outcome: Outcome, *, num_holds: int = 0) -> bool:
        """End a request, unless another did before; ``num_holds`` is 1 for a worker that has it in hand."""
        with self._lock:
            job.num_holds -= num_holds
            is_first = not job.is_done
            if is_first:
                self._leave(job)
            is_free = job.num_holds == 0 and (is_first or num_holds > 0)
        if is_first:
            self._settle(job, outcome)
        if is_free:
            self._release(job.model)
        return is_first

    def finish_all(self, error: Exception) -> None:
        """End every request that is in flight."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            self.finish(job, error)

    def expire_next(self) -> bool:
        """A turn of the thread that answers requests past their deadline, wherever they wait; False at the close."""
        with self._lock:
            while not self._is_closed and not (due := self._deadlines.take_due(self._clock())):
                self._deadline_nearer.wait(self._deadlines.next_in(self._clock()))
            if self._is_closed:
                return False
            jobs = [self._jobs[arrival] for arrival in due]
        self._expire(jobs)
        return True

    def wait_until_empty(self, timeout_s: float, is_awaited: Callable[[], bool]) -> bool:
        """Wait until nothing is in flight nor ``is_awaited``; False when that took too long."""
        end = self._clock() + timeout_s
        with self._lock:
            while self._jobs or is_awaited():
                left = end - self._clock()
                if left <= 0 or self._is_closed:
                    return False
                self._emptier.wait(left)
        return True

    def wake_waiters(self) -> None:
        """Something that `wait_until_empty` waits for has changed."""
        with self._lock:
            self._emptier.notify_all()

    def close(self) -> None:
        """Every ``take_*`` returns None from now on."""
        with self._lock:
            self._is_closed = True
            for stage in (self._decode_ready, self._encode_ready, self._solve_ready):
                stage.notify_all()
            self._deadline_nearer.notify_all()
            self._emptier.notify_all()

    def _put_ready(self, picture: Picture) -> None:
        job = picture.job
        self._to_encode.put(job.model.lane, picture, job.priority, job.arrival)
        job.num_to_encode += 1
        self._count(job, 1)
        self._encode_ready.notify_all()

    def _put_solvable(self, job: Job) -> None:
        if job.num_left == 0 and not (job.is_done or job.is_failed):
            job.is_to_solve = True
            self._to_solve.put(job, job.priority, job.arrival)
            self._solve_ready.notify()

    def _count(self, job: Job, num_images: int) -> None:
        self._queued[job.task] = self._queued.get(job.task, 0) + num_images

    def _let_go(self, job: Job) -> bool:
        job.num_holds -= 1
        return job.is_done and job.num_holds == 0

    def _leave(self, job: Job) -> None:
        job.is_done = True
        del self._jobs[job.arrival]
        self._to_decode.forget(job.num_to_decode)
        if job.num_to_encode:
            self._to_encode.forget(job.model.lane, job.num_to_encode)
            self._count(job, -job.num_to_encode)
        self._to_solve.forget(job.is_to_solve)
        self._emptier.notify_all()

    def _expire(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            allowed = job.deadline_s - job.submitted_s
            self.finish(job, DeadlineExceededError(f"not answered within {allowed:.3g} s, the time it was given"))
