"""Files of 1 MB cut off anywhere: what a full disk, a killed copy or a lost connection leaves."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.faults.damage import Judge, file_of, of_size
from tests.faults.harness import Tally

_NBYTES = 1 << 20
# The end of a file is where its directory is: cutting there is what a reader may not notice.
_END_NBYTES = 2048
_CUTS_NEAR_THE_END = 0.25


def run(seed: int, cases: int, directory: Path) -> Tally:
    """Cut a file at random lengths; half of the time, zeros take the place of what was cut off."""
    generator = random.Random(seed)
    obj = of_size(_NBYTES)
    data = file_of(obj, generator.choice(["torch", "fastckpt"]))
    path = directory / "model.pt"
    judge = Judge(path, obj)
    for _ in range(cases):
        length = _length(generator, len(data))
        padded = generator.random() < 0.5
        path.write_bytes(data[:length])
        if padded:
            os.truncate(path, len(data))
        # The last bytes of an archive are zeros: the number of bytes of its comment.
        if padded and not any(data[length:]):
            judge.tally.count("nothing changed")
            continue
        judge.look(f"seed {seed}: cut at {length} of {len(data)}{', zeros behind' * padded}")
    path.unlink(missing_ok=True)
    return judge.tally


def _length(generator: random.Random, nbytes: int) -> int:
    if generator.random() < _CUTS_NEAR_THE_END:
        return nbytes - generator.randint(1, _END_NBYTES)
    return generator.randrange(nbytes)
