"""Put each bug into a copy of the project, and see whether its test catches it:

    python -m tests.seeded_bugs [NAME...] [--list]

Every test has to pass without the bug first. Builds go to seeded-bugs in cargo's target directory.
Needs cargo, and the Python environment that the tests need.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.seeded_bugs.bugs import BUGS, Bug
from tests.seeded_bugs.tree import PROJECT, DoesNotBuildError, PythonTest, Test, Tree

# The end of what a test printed: enough to see why it failed.
_OUTPUT_NBYTES_SHOWN = 2000

_CAUGHT = "caught"


def main() -> int:
    """Try the bugs that the command line names; return 1 unless every one is caught."""
    arguments = _parse()
    bugs = [bug for bug in BUGS if not arguments.names or bug.name in arguments.names]
    if arguments.list:
        for bug in bugs:
            print(f"{bug.name}: {', '.join(map(str, bug.tests))}")
        return 0
    # A directory of their own: cargo tells builds of the project apart by path within it only.
    target = Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")).resolve() / "seeded-bugs"
    with tempfile.TemporaryDirectory(prefix="fastckpt-seeded-bugs-") as directory:
        tree = Tree(Path(directory), target)
        try:
            tree.build_extension()
        except DoesNotBuildError as error:
            _log(f"the project itself does not build:\n{error}")
            return 1
        broken = _find_broken_tests(tree, bugs)
        results = [(bug, _try(tree, bug, broken)) for bug in bugs]
    _print_table(results)
    return int(any(result != _CAUGHT for _, result in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.seeded_bugs", description=__doc__)
    names = [bug.name for bug in BUGS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--list", action="store_true", help="name the bugs and their tests, and end"
    )
    arguments = parser.parse_args()
    if unknown := {*arguments.names} - {*names}:
        parser.error(f"no such bug: {', '.join(sorted(unknown))}")
    return arguments


def _find_broken_tests(tree: Tree, bugs: list[Bug]) -> dict[Test, str]:
    """Return the tests that do not pass without a bug, and what became of them."""
    broken = {}
    for test in dict.fromkeys(test for bug in bugs for test in bug.tests):
        began = time.monotonic()
        outcome = tree.run(test)
        _log(f"without a bug, {test}: {outcome.verdict} ({time.monotonic() - began:.0f} s)")
        if outcome.verdict != "passed":
            _log(outcome.output[-_OUTPUT_NBYTES_SHOWN:])
            broken[test] = outcome.verdict
    return broken


def _try(tree: Tree, bug: Bug, broken: dict[Test, str]) -> str:
    """Return what came of one bug; the tree is afterwards as it was."""
    if any(test in broken for test in bug.tests):
        return "its test does not pass without the bug"
    sound = tree.read(bug.file)
    if sound.count(bug.old) != 1:
        return f"does not apply: its text is in {bug.file} {sound.count(bug.old)} times"
    needs_extension = bug.file.endswith(".rs") and any(
        isinstance(test, PythonTest) for test in bug.tests
    )
    began = time.monotonic()
    tree.write(bug.file, sound.replace(bug.old, bug.new))
    try:
        if needs_extension:
            tree.build_extension()
        result = _run(tree, bug)
    except DoesNotBuildError as error:
        _log(str(error))
        result = "does not build"
    finally:
        tree.write(bug.file, sound)
        if needs_extension:
            tree.build_extension()
    _log(f"{bug.name}: {result} ({time.monotonic() - began:.0f} s)")
    return result


def _run(tree: Tree, bug: Bug) -> str:
    for test in bug.tests:
        outcome = tree.run(test)
        if outcome.verdict != "failed":
            _log(outcome.output[-_OUTPUT_NBYTES_SHOWN:])
            return f"MISSED by {test}: {outcome.verdict}"
    return _CAUGHT


def _print_table(results: list[tuple[Bug, str]]) -> None:
    print("| bug | tests | result |\n|---|---|---|")
    for bug, result in results:
        print(f"| {bug.name} | {', '.join(map(str, bug.tests))} | {result} |")
    caught = sum(result == _CAUGHT for _, result in results)
    print(f"\n{caught} of {len(results)} seeded bugs caught")


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
