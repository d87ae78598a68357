"""Random pictures, and children that may be killed."""

import os
import sys
import traceback
from collections.abc import Callable

import numpy as np
from PIL import Image


def colour_picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


class Child:
    """A forked copy of this process that runs `work`: importing torch again takes seconds."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]):
        self.out, entry = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.out)
                work(lambda text: os.write(entry, f"{text}\n".encode()))
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(0)
        os.close(entry)

    def first_word(self) -> str:
        """Wait for the child's first message."""
        return os.read(self.out, 1000).decode()

    def kill(self) -> None:
        os.kill(self.pid, 9)
        self.wait()

    def wait(self) -> str:
        """All that the child still has to say."""
        with os.fdopen(self.out) as file:
            text = file.read()
        os.waitpid(self.pid, 0)
        return text
