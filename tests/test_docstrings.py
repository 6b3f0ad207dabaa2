"""The examples in the docstrings of public names run, and give what they say."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastckpt


def examples() -> Iterator[doctest.DocTest]:
    """Yield the examples of public names, and of the methods of public classes."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"fastckpt": fastckpt, "torch": torch}
    for name in sorted(fastckpt.__all__):
        public = getattr(fastckpt, name)
        if not (inspect.isclass(public) or inspect.isroutine(public)):
            continue
        module = inspect.getmodule(public)
        for found in finder.find(public, name, module=module, globs={**names, name: public}):
            if found.examples:
                yield found


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_example_of_a_docstring(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failures = runner.run(example, out=said.append).failed
    assert failures == 0, "".join(said)


def test_public_functions_and_classes_have_docstrings() -> None:
    public = [getattr(fastckpt, name) for name in fastckpt.__all__]
    for each in public:
        if inspect.isclass(each) or inspect.isroutine(each):
            assert inspect.getdoc(each), each
