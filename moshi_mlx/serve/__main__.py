"""Serve Moshi: python -m moshi_mlx.serve.

The main thread runs the event loop, the engine's thread the model; signals ask for the end, and a second one has it at
once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError, MoshiError
from ..models.roles import KINDS
from ..terminal import streams
from ..terminal.version import VERSION, install
from . import options
from .speech import ADDRESSES

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS_NOW = 130
QUEUE = 8  # people in line, unless told; none for those sockets: Kyutai's clients would rather try another server


def make_batch(arguments: argparse.Namespace, say: Callable[[str], None]) -> Any:
    """Loads the model and finds how many people it is to hold at once. Called on the model's thread."""
    import mlx.core as mx

    from ..huggingface.loading import load
    from ..machine import advice, preflight
    from . import capacity

    say(f"loading {arguments.model} ...")
    given: dict[str, Any] = {"adapter": arguments.adapter} if arguments.adapter else {}
    if mx.default_device() == mx.Device(mx.cpu):  # which computes it ten times as fast
        given["dtype"] = mx.float32
    model = load(arguments.model, **given)
    say(preflight.report(model, arguments.kv_bits))
    if arguments.slots != 1 and (hint := advice.for_many(model, str(mx.device_info().get("device_name", "")))):
        say(hint)
    _check_frames(arguments.model, model.config.audio_encoder_config)

    def sized(slots: int) -> Any:
        settings = {"kv_bits": arguments.kv_bits, "context": arguments.context}
        if model.config.role == "transcriber":
            return model.transcribers(slots, codebooks=arguments.codebooks, **settings)
        if model.config.role == "speaker":
            return model.speakers(slots, codebooks=arguments.codebooks, guidance=arguments.guidance, **settings)
        return model.batch(slots, kv_bits=arguments.kv_bits, context=arguments.context, guidance=arguments.guidance)

    if arguments.slots == "auto":
        return capacity.largest(sized, say)
    batch = sized(arguments.slots)
    seconds = capacity.step_seconds(batch)
    slow = "" if seconds < capacity.BUDGET else "; too slow to keep real time with everybody talking"
    say(f"{batch.slots} at once: {1000 * seconds:.0f} ms a step of 80{slow}")
    return batch


def role_of(arguments: argparse.Namespace) -> str:
    """The role of the model, which its config says. Raises InputError for options that this role has no use for."""
    from ..huggingface.config import config_of

    role = config_of(arguments.model).role
    if arguments.codebooks is not None and role not in ADDRESSES:
        raise InputError(f"--codebooks: {arguments.model} is a {KINDS[role][0]}, which has all of its codebooks")
    if arguments.adapter and role in ADDRESSES:
        raise InputError(f"--adapter: {arguments.model} is a {KINDS[role][0]}, which takes none")
    if arguments.guidance is not None and role == "transcriber":
        raise InputError(f"--guidance: {arguments.model} is a {KINDS[role][0]}, which has none")
    return role


def _check_frames(name: str, config: Any) -> None:
    from .house import House

    if (config.sampling_rate, config.frame_size) != (House.sample_rate, House.frame_size):
        raise ConfigError(
            f"{name}: has frames of {config.frame_size} samples at {config.sampling_rate} Hz, "
            f"expected {House.frame_size} at {House.sample_rate} Hz"
        )


async def serve(arguments: argparse.Namespace, opened: Callable[[str], None] = lambda address: None) -> None:
    """Until it is told to end. `opened` is called with the page's address when people can come in."""
    from .app import Listener, tls
    from .guard import Guard
    from .house import House, Rules
    from .logs import logger

    log = logger(arguments.log_format)
    context = tls(arguments.ssl) if arguments.ssl else None
    role = await asyncio.get_running_loop().run_in_executor(None, role_of, arguments)
    guard = Guard(arguments.host, arguments.token, tuple(arguments.origin))
    queue = arguments.queue if arguments.queue is not None else 0 if role in ADDRESSES else QUEUE
    rules = Rules(queue, arguments.max_minutes, arguments.drain)
    house = House(
        lambda: make_batch(arguments, log.info), guard, rules, _short(arguments.model), VERSION, log, role=role
    )
    _on_signals(house)
    listener = Listener(house)
    try:
        await house.open()
        if not house.over.is_set():
            port = await listener.open(arguments.host, arguments.port, context)
            address = _address(arguments.host, port, context is not None)
            log.info("open", extra={"address": address, "slots": house.doors.slots})
            opened(address)
        await house.over.wait()
    finally:
        await house.close()
        await listener.close()
    if house.failure is not None:
        raise house.failure
    log.info("closed")


def _on_signals(house: Any) -> None:
    """The first drains, the second ends the program now."""
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    def asked() -> None:
        if draining or not house.doors.slots:
            os._exit(STATUS_NOW)
        draining.append(asyncio.ensure_future(house.drain()))

    for number in SIGNALS:
        loop.add_signal_handler(number, asked)


def _address(host: str, port: int, secure: bool) -> str:
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http{'s' if secure else ''}://{name}:{port}/"


def _short(model: str) -> str:
    """A model's name without the folders before it: it is shown to people."""
    return Path(model).name


def run(arguments: argparse.Namespace, program: str, opened: Callable[[str], None] = lambda address: None) -> int:
    """Serves, and says what is wrong in one line."""
    try:
        try:
            import aiohttp  # noqa: F401
            import av  # noqa: F401
            import msgpack  # noqa: F401
            import prometheus_client  # noqa: F401
            import sphn  # noqa: F401
        except ImportError as error:
            raise InputError(f"{error.name} is not installed: {install('serve')}") from None
        asyncio.run(serve(arguments, opened))
    except MoshiError as error:
        return streams.failed(program, error)
    except KeyboardInterrupt:
        return STATUS_NOW
    return 0


@streams.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status, which --help describes."""
    return run(options.parse(argv), options.PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
