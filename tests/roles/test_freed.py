"""Whatever compiles steps is freed when nobody holds it: MLX keeps what is compiled as long as its function."""

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
from family import loaded

SIZE = 1920
MAKERS = {
    "session": ("hibiki", lambda model: model.session(progress=False)),
    "batch": ("hibiki", lambda model: model.batch(2, progress=False)),
    "translator": ("hibiki", lambda model: model.translator(progress=False)),
    "transcriber": ("stt", lambda model: model.transcriber(progress=False)),
    "transcribers": ("stt", lambda model: model.transcribers(2, progress=False)),
    "speaker": ("tts", lambda model: model.speaker(progress=False)),
    "speakers": ("tts", lambda model: model.speakers(2, progress=False)),
    "Mimi's stream": ("stt", lambda model: model.audio_encoder.stream(8)),
}


def used(name, one):
    silence = np.zeros(SIZE, np.float32)
    if name in ("session", "translator"):
        one.step(silence)
    elif name in ("batch", "transcribers"):
        one.step({one.join(): silence})
    elif name == "transcriber":
        one.feed(silence)
    elif name == "speaker":
        one.say("a word")
    elif name == "speakers":
        one.join().add("a word")
        one.step()
    else:
        one.encode(silence)


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_freed_with_its_last_holder(name):
    kind, make = MAKERS[name]
    model = loaded(kind)
    gc.collect()
    gc.disable()
    try:
        one = make(model)
        used(name, one)
        seen = weakref.ref(one)
        del one
        assert seen() is None
    finally:
        gc.enable()
        mx.clear_cache()
