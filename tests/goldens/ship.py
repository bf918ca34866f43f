"""Copy what the doctor compares with into the package: moshi_tiny, and what Kyutai's packages made of it.

    python tests/goldens/ship.py

Nothing is computed: every value is one of a golden file here (README.md), small types for small numbers.
"""

import shutil
from pathlib import Path

import mlx.core as mx

HERE = Path(__file__).parent
SHIPPED = HERE.parents[1] / "moshi_mlx" / "assets" / "golden"


def main() -> None:
    SHIPPED.mkdir(parents=True, exist_ok=True)
    for path in (HERE / "moshi_tiny").iterdir():
        shutil.copyfile(path, SHIPPED / path.name)
    lm, mimi = (mx.load(str(HERE / f"{name}.safetensors")) for name in ("lm", "mimi"))
    tokens = {"user": lm["user"], "text": lm["delay1.text"], "audio": lm["delay1.audio"]}
    tokens |= {"codes_tone": mimi["codes_tone"], "codes8": mimi["codes8"]}
    expected = {name: value.astype(mx.uint8) for name, value in tokens.items()}
    mx.save_safetensors(str(SHIPPED / "expected.safetensors"), expected | {"pcm_every_32": mimi["pcm_every_32"]})


if __name__ == "__main__":
    main()
