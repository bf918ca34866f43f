"""The worked example of docs/training.md: teach the miniature one answer that it does not know.

python -m miniature.lesson record FOLDER      recordings to train on, and some for validation
python -m miniature.lesson score MODEL        what it answers to the new question and to the old ones; --adapter FOLDER
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import soundfile

import moshi_mlx

from . import evaluate
from .codec.data import MOSHI, to_int16
from .conversations import asking, dialogues
from .conversations.dialogues import FRAME, REPLY_AFTER, SPEAKERS, Conversation, Rendering
from .talk.script import Exchange
from .talk.speech import SAMPLE_RATE, Utterance, speak

LESSON = Exchange("what is your favourite animal", "I like the red panda.")
SECONDS = 10.0  # length of a recording
NEW_EVERY = 4  # the others hold what the miniature knows already, so that it does not forget it


@functools.cache
def _reply() -> Utterance:
    """Spoken once: espeak-ng never says a thing twice quite alike."""
    return speak(LESSON.answer, MOSHI)


def new_conversation(rng: random.Random, held_out: bool) -> Conversation:
    """The new question once, at any moment, and its answer, as in the miniature's own dialogues."""
    voice, gain = asking.asking_voice(rng, held_out), rng.uniform(0.7, 1.0)
    question, reply = asking.ask(LESSON, rng, voice), _reply()
    at = int(rng.uniform(0.1, 2.0) * SAMPLE_RATE)
    begin = math.ceil((at + len(question.sound) + REPLY_AFTER * SAMPLE_RATE) / FRAME) * FRAME
    sound = np.zeros((2, int(SECONDS * SAMPLE_RATE)), np.float32)
    words = []
    for channel, start, said, loudness in ((1, at, question, gain), (0, begin, reply, 1.0)):
        end = start + len(said.sound)
        sound[channel, start:end] = loudness * said.sound
        words += [(*word, SPEAKERS[channel]) for word in dialogues.timed(said, start, end)]
    return Conversation(sound, words, [])


def record(folder: Path, conversations: int) -> None:
    """folder/train and, a tenth as many, folder/valid: stereo FLAC files with their timings beside them.

    And folder/question.flac: the new question alone, to hear the answer to.
    """
    dialogues.replies()  # first, in a fresh engine: as the model learned them
    for name, count in (("train", conversations), ("valid", max(1, conversations // 10))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            rng = random.Random(f"lesson {name} {n}")
            held_out, known = name != "train", n % NEW_EVERY
            made = dialogues.conversation(rng, held_out, SECONDS) if known else new_conversation(rng, held_out)
            path = folder / name / f"{n:03}.flac"
            path.with_suffix(".json").write_text(json.dumps(dialogues.timings(made.words)))
            soundfile.write(path, to_int16(made.sound.T), SAMPLE_RATE)
        print(f"{folder / name}: {count} conversations")
    soundfile.write(folder / "question.flac", to_int16(new_renderings(1)[0].sound), SAMPLE_RATE)


def new_renderings(count: int) -> list[Rendering]:
    """The new question in voices that were never trained on, with time for the answer."""
    renderings = []
    for n in range(count):
        made = new_conversation(random.Random(f"lesson asked {n}"), held_out=True)
        end = max(end for _, _, end, speaker in made.words if speaker == SPEAKERS[1])
        user = made.sound[1, : math.ceil((end + 4) * SAMPLE_RATE / FRAME) * FRAME]
        renderings.append(Rendering(LESSON, user[: len(user) // FRAME * FRAME], 0.0, end))
    return renderings


def right(model: moshi_mlx.MoshiForConditionalGeneration, renderings: list[Rendering]) -> int:
    """How many of the questions are answered by the right text and nothing else, greedily."""
    heard = evaluate.ask(model, renderings, evaluate.GREEDY)
    said = [evaluate.plain(evaluate.text_of(model, one.tokens)) for one in heard]
    return sum(
        text == evaluate.plain(rendering.exchange.answer) for text, rendering in zip(said, renderings, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m miniature.lesson", description="Teach the miniature one answer.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--count", type=int, default=160, help="conversations to train on (default: 160)")
    score = commands.add_parser("score")
    score.add_argument("model")
    score.add_argument("--adapter")
    score.add_argument("--count", type=int, default=25, help="questions of each kind (default: 25)")
    arguments = parser.parse_args()
    if arguments.command == "record":
        record(arguments.folder, arguments.count)
        return
    # In float32, which the CPU computes ten times as fast as bfloat16.
    model = moshi_mlx.load(arguments.model, adapter=arguments.adapter, dtype=mx.float32)
    for kind, renderings in (
        ("new", new_renderings(arguments.count)),
        ("old", dialogues.held_out(4 * arguments.count)),
    ):
        print(f"{kind}: {right(model, renderings)} of {len(renderings)} answered right")


if __name__ == "__main__":
    main()
