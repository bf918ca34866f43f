"""A conversation for programs with an event loop: the model works on a thread of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..terminal.threads import join
from .frame import Frame
from .session import Session

if TYPE_CHECKING:  # a tenth of the time to import the package; who has an event loop has it already
    import asyncio

WAITING = 8  # frames, 0.64 s


class AsyncConversation:
    """A conversation in an event loop, made by `model.conversation(...)` and entered with `async with`.

    `await talk.step(pcm)` is a frame, as `Session.step` has it. Or one task hands frames in with `await talk.send(pcm)`
    and another takes them out with `async for frame in talk`; `talk.end()` says that no more will come. At most
    `waiting` frames of 80 ms are on their way: `send` waits where nobody takes them out. Nothing blocks the loop. All
    work of MLX is done on one thread, which ends with the block, also where a task is cancelled.

    What a frame raises (InputError, say) is raised where it is taken out, and the conversation goes on.

    >>> import asyncio
    >>> model = moshi_mlx.load("miniature", dtype="float32")
    >>> async def main():
    ...     async with model.conversation(seed=0) as talk:  # 24000 Hz, 1920 samples a frame
    ...         frame = await talk.step(np.zeros(talk.frame_size, np.float32))
    ...         return frame.pcm.shape
    >>> asyncio.run(main())
    (1920,)
    """

    def __init__(self, make: Callable[[], Session], waiting: int = WAITING) -> None:
        if not isinstance(waiting, int) or isinstance(waiting, bool) or waiting < 1:
            raise InputError(f"waiting: got {waiting!r}, expected 1 frame or more")
        self._make, self._waiting = make, waiting
        self._work: queue.SimpleQueue[tuple[Callable[[Session], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False
        self.sample_rate = self.frame_size = 0
        """Of the sound, known inside the block: 24000 Hz, 1920 samples a frame."""

    # In and out of the block

    async def __aenter__(self) -> AsyncConversation:
        import asyncio

        if self._thread is not None:
            raise InputError("conversation: was entered already; make another one with model.conversation()")
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(self._waiting)
        self._frames: asyncio.Queue[asyncio.Future[Frame] | None] = asyncio.Queue()
        ready: asyncio.Future[Session] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="conversation", daemon=True)
        self._thread.start()
        try:
            session = await ready
        except BaseException:
            await self._close()
            raise
        self.sample_rate, self.frame_size = session.sample_rate, session.frame_size
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """End the thread, after the frame that it works on; what waits behind it is dropped."""
        import asyncio

        self._ended = True
        self._work.put(None)
        thread = self._thread
        if thread is not None:
            await asyncio.shield(asyncio.to_thread(join, thread))

    # Frames

    async def step(self, pcm: Any) -> Frame:
        """One frame: pcm float [frame_size], what the user says -> what Moshi says meanwhile. See `Session.step`."""
        return await self._do(lambda session: session.step(pcm))

    async def step_codes(self, codes: Any) -> Frame:
        """One frame from Mimi codes int [user codebooks] of the user's sound. See `Session.step_codes`."""
        return await self._do(lambda session: session.step_codes(codes))

    async def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation, after the frames that are on their way. See `Session.reset`."""
        await self._do(lambda session: session.reset(seed))

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, after the frames that are on their way. See `Session.save`."""
        await self._do(lambda session: session.save(path))

    async def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on with a saved conversation, after the frames that are on their way. See `Session.restore`."""
        await self._do(lambda session: session.restore(path))

    async def send(self, pcm: Any) -> None:
        """Hand in a frame, whose reply `async for` gives; waits while `waiting` of them are on their way."""
        self._check()
        await self._room.acquire()
        self._frames.put_nowait(self._do(lambda session: session.step(pcm)))

    def end(self) -> None:
        """No more frames come: `async for` ends behind those that are on their way."""
        self._frames.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while True:
            coming = await self._frames.get()
            if coming is None:
                return
            try:
                frame = await coming
            finally:
                self._room.release()
            yield frame

    def _do(self, work: Callable[[Session], Any]) -> asyncio.Future[Any]:
        self._check()
        future = self._loop.create_future()
        self._work.put((work, future))
        return future

    def _check(self) -> None:
        if self._thread is None or self._ended:
            raise InputError("conversation: is not open; use it inside `async with model.conversation() as talk:`")

    # The model's thread

    def _run(self, ready: asyncio.Future[Session]) -> None:
        try:
            session = self._make()
        except BaseException as error:
            self._tell(ready, None, error)
            return
        self._tell(ready, session, None)
        while (item := self._work.get()) is not None and not self._ended:
            work, future = item
            if future.cancelled():
                continue
            try:
                self._tell(future, work(session), None)
            except BaseException as error:
                self._tell(future, None, error)

    def _tell(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        def tell() -> None:
            if future.done():  # its task was cancelled meanwhile
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(tell)
