"""The HAProxy configuration that ships, before two workers: who waits, who is refused, and where new people go."""

import asyncio
import os
import re
import shutil
import signal
import subprocess

import aiohttp
import pytest
from serving import Visitor, run, until
from serving_processes import free_port, health, wait_for, worker

from moshi_mlx.serve.app import PAGE

CONFIG = (PAGE.parent / "deploy" / "haproxy.cfg").read_text()
QUEUE_SECONDS = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("haproxy") or os.environ.get("CI")), reason="needs haproxy, which CI installs"
    ),
]


@pytest.fixture
def house(tmp_path):
    """HAProxy's port, and two workers of one slot: (port, process) each."""
    front, ports = free_port(), [free_port(), free_port()]
    config = CONFIG.replace("127.0.0.1:8080", f"127.0.0.1:{front}").replace("maxconn 4", "maxconn 1")
    config = config.replace("127.0.0.1:8998", f"127.0.0.1:{ports[0]}").replace(
        "127.0.0.1:8999", f"127.0.0.1:{ports[1]}"
    )
    config, count = re.subn(r"timeout queue 30s", f"timeout queue {QUEUE_SECONDS}s", config)
    assert count == 1
    file = tmp_path / "haproxy.cfg"
    file.write_text(config)
    flags = ("--slots", "1", "--queue", "0", "--drain", "20")
    with worker(ports[0], *flags) as first, worker(ports[1], *flags) as second:
        balancer = subprocess.Popen(["haproxy", "-f", str(file)], stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: health(front))
            yield front, list(zip(ports, (first, second), strict=True))
        finally:
            balancer.terminate()
            balancer.wait()


class Caller:
    def __init__(self, session, port):
        self.session, self.url, self.ws = session, f"ws://127.0.0.1:{port}/api/chat", None

    async def call(self):
        """-> somebody inside, or the HTTP status."""
        try:
            self.ws = await self.session.ws_connect(self.url)
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        me = Visitor(self.ws)
        await me.handshake()
        return me


def where(workers):
    """How many people each worker has."""
    return [(health(port) or {}).get("slots", 0) - (health(port) or {}).get("free", 0) for port, _ in workers]


def test_the_file_is_valid():
    file = PAGE.parent / "deploy" / "haproxy.cfg"
    subprocess.run(["haproxy", "-c", "-f", str(file)], check=True, capture_output=True)


def test_waiting_refusing_draining_and_a_killed_worker(house):
    front, workers = house

    async def scene():
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession() as session:
            call = Caller(session, front).call
            first, second = await call(), await call()
            assert {type(first), type(second)} == {Visitor}
            assert await asyncio.to_thread(where, workers) == [1, 1]
            await first.talk(3)

            third = asyncio.ensure_future(call())  # waits, and is let in
            await asyncio.sleep(0.5)
            assert not third.done()
            await first.ws.close()
            third = await asyncio.wait_for(third, 2)
            await third.talk(3)

            began = loop.time()  # a full house: refused after the queue's time, while the page still comes
            fourth = asyncio.ensure_future(call())
            async with session.get(f"http://127.0.0.1:{front}/page.js") as page:
                assert page.status == 200
            assert await fourth == 503
            assert loop.time() - began == pytest.approx(QUEUE_SECONDS, abs=1.0)
            await second.talk(3)

            await second.ws.close()  # a draining worker gets nobody, and its person goes on
            places = await asyncio.to_thread(where, workers)
            (port, process), other = workers if places == [1, 0] else reversed(workers)
            process.send_signal(signal.SIGTERM)
            await until(lambda: health(port)["status"] == "draining")
            fifth = await call()
            assert (await asyncio.to_thread(health, other[0]))["free"] == 0
            await third.talk(3)
            assert await call() == 503
            await third.ws.close()
            await asyncio.to_thread(process.wait, 10)
            assert process.returncode == 0

            other[1].kill()  # a killed worker's person is told
            assert await asyncio.wait_for(fifth.until_closed(), 5) == 1006
            assert await call() == 503

    run(scene(), 60)


def test_new_people_go_elsewhere_when_a_worker_is_killed(house):
    front, workers = house

    async def scene():
        async with aiohttp.ClientSession() as session:
            call = Caller(session, front).call
            first = await call()
            port, process = workers[(await asyncio.to_thread(where, workers)).index(1)]
            process.kill()
            assert await asyncio.wait_for(first.until_closed(), 5) == 1006
            again = await call()
            await again.talk(3)
            assert health(port) is None

    run(scene(), 60)
