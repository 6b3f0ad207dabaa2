"""What all tests share: where they may write, which are skipped, how much hypothesis tries."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

# Examples touch the disk, which has no steady pace: the limit for a whole test is pytest-timeout's.
hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
# Of a change alone: what CI says of it does not depend on luck.
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure() -> None:
    """Let Ctrl-C through: a shell's background job has it ignored, and so would the children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if not any(item.get_closest_marker("cuda") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none here")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


# Reasons for which a test may be skipped even where everything is required: a GPU, and devices that
# a container may not have.
_ALLOWED_SKIPS = ("needs a CUDA device", "missing device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail what was skipped where FASTCKPT_TESTS_REQUIRED=1: a guarantee not tested is none."""
    report = yield
    if os.environ.get("FASTCKPT_TESTS_REQUIRED") != "1" or not report.skipped:
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not hasattr(report, "wasxfail") and not any(words in reason for words in _ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{reason} (nothing may be skipped: FASTCKPT_TESTS_REQUIRED=1)"
    return report


@pytest.fixture(autouse=True)
def isolated_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Keep tests away from the user's checkpoints and settings; returns nanochat's base here."""
    for name in list(os.environ):
        if (name.startswith("FASTCKPT_") and name != "FASTCKPT_TESTS_REQUIRED") or name in {
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
        }:
            monkeypatch.delenv(name)
    base = tmp_path_factory.getbasetemp() / "nanochat-base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    return base
