"""The parser of every command line here: what is wrong with a flag is said in one line, with exit status 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """`prog` is "python -m MODULE", perhaps with a command behind it; MODULE stands before an error."""

    def error(self, message: str) -> NoReturn:
        module = self.prog.removeprefix("python -m ").split()[0]
        self.exit(2, f"{module}: error: {message} (--help shows the options)\n")
