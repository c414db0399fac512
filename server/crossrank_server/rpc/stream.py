"""Answer the requests of one stream as they are ready, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


async def pipelined(
    questions: AsyncIterable[Question], answer: Callable[[Question], Awaitable[Answer]], most_under_way: int
) -> AsyncGenerator[Answer, None]:
    """Yield the answers in the order in which they are ready.

    A question counts as under way until its answer is taken. So a client that does not read its answers, and an engine
    that is slow, both stop the reading of questions, and flow control then stops the sender.

    Args:
        questions: Read while fewer than `most_under_way` are under way. Where reading fails, those that were read are
            still answered before the stream ends with the error.
        answer: Answers one question; an exception that it raises ends the stream.
        most_under_way: Limit of questions under way at a time.
    """
    permits = asyncio.Semaphore(most_under_way)
    ready: asyncio.Queue[asyncio.Task[Answer | None]] = asyncio.Queue()
    running: set[asyncio.Task[Answer | None]] = set()

    def start(work: Coroutine[Any, Any, Answer | None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        running.add(task)
        task.add_done_callback(ready.put_nowait)

    async def read() -> None:
        async for question in questions:
            await permits.acquire()
            start(_awaited(answer(question)))

    start(read())
    (reader,) = running
    failure: BaseException | None = None
    try:
        while running:
            task = await ready.get()
            running.discard(task)
            if task is reader and (failure := task.exception()) is not None:
                continue
            if (result := task.result()) is not None:
                yield result
                permits.release()
        if failure is not None:
            raise failure
    finally:
        for task in running:
            task.cancel()


async def _awaited(work: Awaitable[Answer]) -> Answer:
    return await work
