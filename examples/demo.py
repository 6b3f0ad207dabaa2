"""fastckpt at work: a run that is killed and resumes as if nothing had happened, and a flipped bit.

    python examples/demo.py [--directory DIR] [--keep] [--seed N]

Every statement that it prints is checked; it exits with 1 if one does not hold.
"""

import argparse
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

import fastckpt

EXAMPLES = Path(__file__).resolve().parent
STEPS = 48
SAVE_EVERY = 8
# The first kill comes somewhere in these steps, none of which is saved.
FIRST_KILL_STEPS = range(SAVE_EVERY + 2, 2 * SAVE_EVERY - 1)
CHILD_TIMEOUT_SECS = 120.0

failures: list[str] = []


def check(holds: bool, claim: str) -> None:
    """Print a claim with its verdict, and remember one that does not hold."""
    print(
        textwrap.fill(
            claim, 78, initial_indent="  ok    " if holds else "  FAIL  ", subsequent_indent=" " * 8
        )
    )
    if not holds:
        failures.append(claim)


def say(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  "))


def title(text: str) -> None:
    """Print the title of a part."""
    print(f"\n{text}\n{'-' * len(text)}")


# Training, in child processes.


def start_training(run: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    """Start a child process that trains into `run`."""
    command = [sys.executable, str(EXAMPLES / "train.py"), str(run)]
    command += ["--steps", str(STEPS), "--save-every", str(SAVE_EVERY)] + ["--resume"] * resume
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(child: subprocess.Popen[bytes]) -> None:
    """Wait until a child has trained to its end."""
    _, messages = child.communicate(timeout=CHILD_TIMEOUT_SECS)
    if child.returncode != 0:
        raise SystemExit(f"training failed with exit code {child.returncode}:\n{messages.decode()}")


def wait_for(child: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait until something is the case while the child trains, looking 2,000 times a second."""
    deadline = time.monotonic() + CHILD_TIMEOUT_SECS
    while not condition():
        if child.poll() is not None or time.monotonic() > deadline:
            finish(child)
            raise SystemExit("the training run ended before it could be killed")
        time.sleep(0.0005)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child as `kill -9` does: it gets no chance to clean up."""
    child.send_signal(signal.SIGKILL)
    child.communicate()


def read_losses(run: Path) -> list[tuple[int, str]]:
    """Return (step, loss) in the order of training; the losses are exact, in hexadecimal."""
    lines = (
        (run / "losses.jsonl").read_text().splitlines() if (run / "losses.jsonl").exists() else []
    )
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [(record["step"], record["loss"]) for record in records]


def temporary_files(run: Path) -> list[str]:
    """Return the names of the files that a save has begun and not finished."""
    return sorted(path.name for path in run.glob(".fastckpt-*.tmp"))


def train_with_kills(run: Path, chance: random.Random) -> None:
    """Train, killed once at a random moment and once in the middle of a save, and resume each time."""
    kill_step = chance.choice(FIRST_KILL_STEPS)
    delay = chance.uniform(0.0, 0.2)
    child = start_training(run, resume=False)
    wait_for(child, lambda: any(step >= kill_step for step, _ in read_losses(run)))
    time.sleep(delay)
    kill(child)
    report_kill(run, f"{delay * 1000:.0f} ms after step {kill_step}")

    saves_before = fastckpt.find_last_step(run)
    unfinished = set(temporary_files(run))
    child = start_training(run, resume=True)
    wait_for(child, lambda: read_losses(run)[-1][0] > saves_before + SAVE_EVERY // 2)
    wait_for(child, lambda: not unfinished >= set(temporary_files(run)))
    kill(child)
    report_kill(run, "while a save was writing its files")
    finish(start_training(run, resume=True))


def report_kill(run: Path, moment: str) -> None:
    """Say what a kill left behind."""
    left = len(temporary_files(run))
    files = f"{left} unfinished file{'s' * (left != 1)}" if left else "no unfinished file"
    say(f"SIGKILL {moment}: left {files}; the last step there is {fastckpt.find_last_step(run)}.")


# The parts of the demonstration.


def show_resume(work: Path, chance: random.Random) -> Path:
    """Train twice, once undisturbed and once with kills; return the directory of the killed run."""
    title(f"1. {STEPS} steps of a small GPT on Python's own source, and the same with kill -9")
    undisturbed, killed = work / "undisturbed", work / "killed"
    finish(start_training(undisturbed, resume=False))
    say(f"The undisturbed run is done: it saved every {SAVE_EVERY} steps.")
    train_with_kills(killed, chance)

    expected = dict(read_losses(undisturbed))
    losses = read_losses(killed)
    print_losses(expected, losses)
    check(
        sorted(set(losses)) == sorted(expected.items()),
        f"all {len(losses)} losses of the killed run, {len(losses) - STEPS} of them of steps that it did twice, "
        "are bit for bit those of the undisturbed run",
    )
    same_state = same_tensors(undisturbed, killed)
    check(same_state, f"model and optimizer of step {STEPS} are the same in both, bit for bit")
    check(
        fastckpt.find_last_good_step(killed) == STEPS and not temporary_files(killed),
        f"the last step is {STEPS}; what the kills left unfinished, later saves have removed",
    )
    return killed


def same_tensors(first: Path, second: Path) -> bool:
    """Compare the last step of two runs, through torch.load: every tensor, every bit."""
    for name in (f"model_{STEPS:06d}.pt", f"optim_{STEPS:06d}_rank0.pt"):
        tensors = [list_tensors(torch.load(run / name)) for run in (first, second)]
        same = (
            torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
            for a, b in zip(*tensors, strict=True)
        )
        if not all(same):
            return False
    return True


def list_tensors(value: object) -> list[torch.Tensor]:
    """Return the tensors in nested dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return (
        [t for item in value.values() for t in list_tensors(item)]
        if isinstance(value, dict)
        else []
    )


def print_losses(expected: dict[int, str], losses: list[tuple[int, str]]) -> None:
    """Print the losses side by side: those of the saves, and those around a resume."""
    resumes = {i for i in range(1, len(losses)) if losses[i][0] <= losses[i - 1][0]}
    print(f"\n  {'step':>4}  {'undisturbed':<22}  {'killed and resumed':<22}")
    for i, (step, loss) in enumerate(losses):
        if not (step % SAVE_EVERY == 0 or i in resumes or i + 1 in resumes):
            continue
        if i in resumes:
            print(f"        {'':<22}  -- killed, resumed from step {step - 1} --")
        verdict = "same" if loss == expected[step] else "DIFFERENT"
        print(
            f"  {step:>4}  {float.fromhex(expected[step])!r:<22}  {float.fromhex(loss)!r:<22}  {verdict}"
        )
    print()


def run_verify(run: Path) -> tuple[int, str]:
    """Run `fastckpt verify` and show what it says; return its exit code and its output."""
    print(f"  $ fastckpt verify {run.name}/")
    command = [sys.executable, "-m", "fastckpt", "verify", run.name]
    environment = {**os.environ, "COLUMNS": "76", "NO_COLOR": "1"}
    result = subprocess.run(
        command, cwd=run.parent, env=environment, capture_output=True, text=True, check=False
    )
    for line in (result.stdout + result.stderr).splitlines():
        print(
            textwrap.fill(line, 78, initial_indent="  | ", subsequent_indent="  |       ") or "  |"
        )
    return result.returncode, result.stdout


def show_verify(run: Path) -> None:
    """Verify the files of a good run."""
    title("2. Every byte of the killed run, checked")
    code, _ = run_verify(run)
    check(code == 0, "verify finds nothing wrong and exits with 0")


def show_flipped_bit(run: Path, chance: random.Random) -> None:
    """Flip one bit of a weight in a copy, and see who notices."""
    title("3. One bit of one weight flipped, in a copy")
    damaged = run.with_name("damaged")
    shutil.copytree(run, damaged)
    model_path = damaged / f"model_{STEPS:06d}.pt"
    good = torch.load(model_path)
    name = chance.choice(list(good))
    index = flip_bit(model_path, list(good).index(name), chance)
    code, output = run_verify(damaged)
    check(code == 1 and name in "".join(output.split()), f"verify names {name} and exits with 1")

    loaded = torch.load(model_path)
    changed = [
        key
        for key in good
        if not torch.equal(good[key].view(torch.int32), loaded[key].view(torch.int32))
    ]
    before, after = (float(state[name].flatten()[index]) for state in (good, loaded))
    check(
        changed == [name],
        f"torch.load says nothing; in what it returns, {name} has {after:.9g} where {before:.9g} was trained",
    )
    try:
        fastckpt.load_checkpoint(damaged, STEPS, "cpu")
    except fastckpt.ChecksumError as error:
        check(name in str(error), f"load_checkpoint refuses, and says: {error}")
    else:
        check(False, "load_checkpoint refuses")


def flip_bit(path: Path, position: int, chance: random.Random) -> int:
    """Flip one bit of the storage at `position` in a file of float32 tensors; return the element's index."""
    record = f"{path.stem}/data/{position}"
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(record)
    with open(path, "r+b") as file:
        # A local header has 30 bytes, the last four of which are the lengths of name and extra field.
        file.seek(entry.header_offset + 26)
        lengths = file.read(4)
        payload = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        byte = chance.randrange(entry.file_size)
        file.seek(payload + byte)
        value = file.read(1)[0] ^ (1 << chance.randrange(8))
        file.seek(payload + byte)
        file.write(bytes([value]))
    return byte // 4


def show_speed(work: Path) -> None:
    """Print a small comparison with torch; the figures are shown, not judged."""
    title("4. Save and load beside torch")
    result = subprocess.run([sys.executable, EXAMPLES / "speed.py", work], check=False)
    check(result.returncode == 0, "what every way loaded is bit for bit what was saved")


def main() -> int:
    """Run the demonstration; return its exit code."""
    parser = argparse.ArgumentParser(description="Show what fastckpt does.")
    parser.add_argument("--directory", type=Path, help="where to work; on a disk, not in memory")
    parser.add_argument("--keep", action="store_true", help="keep the files")
    parser.add_argument("--seed", type=int, help="when to kill, which bit to flip")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with what the children print
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    chance = random.Random(seed)
    parent = arguments.directory or EXAMPLES.parent / "build"
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="demo-", dir=parent.resolve()))
    started = time.monotonic()
    print(f"fastckpt {fastckpt.__version__}, torch {torch.__version__}, seed {seed}, in {work}")
    try:
        killed = show_resume(work, chance)
        show_verify(killed)
        show_flipped_bit(killed, chance)
        show_speed(work)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    title("Failed" if failures else f"All of it holds ({time.monotonic() - started:.0f} seconds)")
    for claim in failures:
        print(f"  - {claim}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
