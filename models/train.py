"""Make ``models/demo.gguf``, the toy model that comes with the project. From the checkout:

    python -m venv /tmp/training
    /tmp/training/bin/pip install --require-virtualenv -r models/requirements-train.txt
    /tmp/training/bin/python -m models.train

It writes its own text (``models.corpus``), learns a tokenizer from it, trains a network of 2.4 million parameters on
the CPU (``models.training``) and says the file's sha256, which belongs into ``models/README.md``. ``--minutes`` is the
time for training alone: the rate of learning falls to 0 by its end, however many steps the machine has made.

The text, the tokenizer and the order of the rows are the same every time. The weights are not: the schedule goes by the
clock, and sums depend on the number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np

from models.corpus.conversations import Conversation, conversations
from models.corpus.world import load_world
from models.training import network
from models.training.export import export
from models.training.loop import train
from models.training.network import Shape
from models.training.rows import make_rows
from models.training.schedule import Schedule
from models.training.tokenizer import train_tokenizer

VOCABULARY = 2048
CONTEXT = 1024  # tokens of the longest rows, and of what the file says
_SHORT_ROWS = 384  # most conversations are short, and short rows cost half as much
_SEED = 20
_SHORT_TURNS = (1, 1, 2, 2, 2, 3, 3, 4, 5, 6)
_LONG_TURNS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
_SHORT, _LONG, _HELD_OUT = 70_000, 8_000, 1_000  # conversations
_DEMO = Path(__file__).with_name("demo.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model and write it as GGUF.")
    parser.add_argument("--out", type=Path, default=_DEMO, help="file to write (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=70, help="time for training (default: %(default)s)")
    given = parser.parse_args()
    world = load_world()
    short = _text(_SEED, _SHORT, _SHORT_TURNS)
    long = _text(_SEED + 1, _LONG, _LONG_TURNS)
    tokenizer = train_tokenizer(
        (f"{role}\n{text}" for messages in short[:20_000] for role, text in messages), VOCABULARY
    )
    shape = Shape(VOCABULARY)
    names = [item.name for items in world.items.values() for item in items]
    short_rows = make_rows(tokenizer, short, _SHORT_ROWS, names)
    long_rows = make_rows(tokenizer, long, CONTEXT, names)
    held_out = make_rows(tokenizer, _text(_SEED + 2, _HELD_OUT, _SHORT_TURNS), _SHORT_ROWS)
    print(f"{short_rows.filled:,} tokens in short rows, {long_rows.filled:,} in long ones", flush=True)

    def write(weights: network.Weights) -> None:
        partial = given.out.with_suffix(".part")
        export(partial, {name: np.asarray(weight) for name, weight in weights.items()}, shape, tokenizer, CONTEXT)
        partial.replace(given.out)

    train(network.initial(shape, _SEED), shape, (short_rows, long_rows), held_out, Schedule(given.minutes * 60), write)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes, sha256 {_digest(given.out)}")


def _text(seed: int, count: int, turns: tuple[int, ...]) -> list[Conversation]:
    return list(conversations(seed, count, turns=turns))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
