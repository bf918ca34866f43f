"""A conversation in an event loop: the same frames, bounded, cancelled without a trace, nothing blocked."""

import asyncio
import threading

import numpy as np
import pytest
from helpers import GREEDY, question

from moshi_mlx import InputError

FRAMES = question().reshape(-1, 1920)[:12]


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.text_token == b.text_token
        np.testing.assert_array_equal(a.audio_codes, b.audio_codes)


@pytest.fixture(scope="module")
def expected(model):
    session = model.session(**GREEDY)
    return [session.step(frame) for frame in FRAMES]


def test_a_step_is_a_sessions_and_runs_on_one_thread_of_its_own(model, expected):
    threads = set()

    async def main():
        hook = lambda token: threads.add(threading.get_ident())  # noqa: E731
        async with model.conversation(**GREEDY, on_text=hook) as talk:
            assert (talk.sample_rate, talk.frame_size) == (24000, 1920)
            return [await talk.step(frame) for frame in FRAMES]

    same(run(main()), expected)
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert not [thread for thread in threading.enumerate() if thread.name == "conversation"]


def test_frames_are_sent_by_one_task_and_taken_by_another(model, expected):
    async def main():
        async with model.conversation(**GREEDY, waiting=2) as talk:

            async def speak():
                for frame in FRAMES:
                    await talk.send(frame)
                talk.end()

            speaking = asyncio.create_task(speak())
            heard = [frame async for frame in talk]
            await speaking
            return heard

    same(run(main()), expected)


def test_whoever_takes_nothing_out_makes_the_sender_wait(model):
    async def main():
        async with model.conversation(**GREEDY, waiting=3) as talk:
            for _ in range(3):
                await asyncio.wait_for(talk.send(FRAMES[0]), 30)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(talk.send(FRAMES[0]), 0.5)

    run(main())


def test_an_error_is_raised_where_the_frame_is_and_the_conversation_goes_on(model, expected):
    async def main():
        async with model.conversation(**GREEDY) as talk:
            with pytest.raises(InputError, match="pcm"):
                await talk.step(FRAMES[0][:7])
            first = await talk.step(FRAMES[0])
            await talk.step(FRAMES[1])
            await talk.reset()
            return [first, await talk.step(FRAMES[0])]

    first, again = run(main())
    same([first, again], [expected[0], expected[0]])


def test_cancelling_ends_the_thread_and_leaves_the_loop_usable(model):
    async def main():
        async def talk_for_ever():
            async with model.conversation(**GREEDY) as talk:
                while True:
                    await talk.step(FRAMES[0])

        task = asyncio.create_task(talk_for_ever())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name == "conversation"]


def test_what_is_wrong_is_named(model):
    async def twice():
        talk = model.conversation(**GREEDY)
        with pytest.raises(InputError, match="is not open"):
            await talk.step(FRAMES[0])
        async with talk:
            pass
        with pytest.raises(InputError, match="is not open"):
            await talk.step(FRAMES[0])
        with pytest.raises(InputError, match="entered already"):
            await talk.__aenter__()

    async def bad_settings():
        async with model.conversation(top_p=7):
            pass

    run(twice())
    with pytest.raises(InputError, match="top_p"):
        run(bad_settings())
    assert not [thread for thread in threading.enumerate() if thread.name == "conversation"]
    for waiting in (0, -1, 1.5, True, None):
        with pytest.raises(InputError, match="waiting"):
            model.conversation(waiting=waiting)
