"""Places inside and in line, in order."""

import asyncio

import pytest

from moshi_mlx.serve.doors import Closed, Doors


def run(scene):
    asyncio.run(asyncio.wait_for(scene, 5))


def test_in_order_and_full_after_the_line():
    async def scene():
        doors, order = Doors(2, 3), []

        async def person(name):
            place = places[name]
            await place.turn()
            order.append(name)

        places = {name: doors.enter() for name in "abcde"}
        tasks = {name: asyncio.ensure_future(person(name)) for name in "abcde"}
        await asyncio.sleep(0)
        assert (order, doors.inside, doors.waiting) == (["a", "b"], 2, 3)
        with pytest.raises(Closed, match="all 2 slots are taken and 3 people wait"):
            doors.enter()
        places["d"].release()  # leaves the line
        places["b"].release()
        places["b"].release()
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "c"]
        places["a"].release()
        await asyncio.sleep(0.01)
        assert order == ["a", "b", "c", "e"]
        for place in places.values():
            place.release()
        assert (doors.inside, doors.waiting) == (0, 0)
        tasks["d"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    run(scene())


def test_draining_tells_those_who_wait():
    async def scene():
        doors = Doors(1, 2)
        inside, first, _forgotten = doors.enter(), doors.enter(), doors.enter()
        waiting = asyncio.ensure_future(first.turn())
        await asyncio.sleep(0)
        doors.drain()
        with pytest.raises(Closed) as closed:
            await waiting
        assert closed.value.draining
        with pytest.raises(Closed) as closed:
            doors.enter()
        assert closed.value.draining
        await inside.turn()
        inside.release()

    run(scene())
