"""What the name of a metric tells: which one was meant, and which end of it is the best."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Literal

Mode = Literal["min", "max"]

_WORD = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+|[0-9]+")
# Words of metrics of which higher is better. "core" is that of nanochat's base models.
_HIGHER = {
    *("acc", "accuracy", "top1", "top5", "auc", "auroc", "auprc", "ap", "map", "bleu"),
    *("rouge", "meteor", "chrf", "f1", "fscore", "dice", "iou", "miou", "precision"),
    *("recall", "hit", "hits", "mrr", "ndcg", "pass", "psnr", "ssim", "r2", "kappa", "mcc"),
    *("reward", "score", "win", "winrate", "correct", "core"),
}
# Words that turn a name around: "acc_loss" is a loss.
_LOWER = {
    *("loss", "error", "err", "nll", "ppl", "perplexity", "bpb", "mae", "mse", "rmse"),
    *("wer", "cer", "fid"),
}


def nearest_first(metric_name: str, available: Iterable[str]) -> list[str]:
    """Sort names by how similar they are to one that is not among them.

    Example:
        >>> nearest_first("loss", ["acc", "loop_state.loss_ema", "val_loss"])
        ['val_loss', 'loop_state.loss_ema', 'acc']
    """
    return sorted(available, key=lambda name: (-_similarity(metric_name, name), name))


def _similarity(wanted: str, name: str) -> float:
    wanted = wanted.lower()
    # Of a dotted path, the last part is often all that somebody types.
    candidates = {name.lower(), name.lower().rpartition(".")[2]}
    return max(SequenceMatcher(None, wanted, each).ratio() for each in candidates)


def best_end(metric_name: str, mode: str | None) -> Mode:
    """Return which value of a metric is the best: as asked, else the lowest.

    Raises:
        ValueError: `mode` is neither "min", "max" nor None; or None was asked, and the name says that
            higher is better.

    Example:
        >>> best_end("val_loss", None), best_end("val_acc", "max")
        ('min', 'max')
    """
    if mode is None:
        if sounds_like_accuracy(metric_name):
            raise ValueError(
                f"{metric_name!r} sounds as if higher is better, and the default is the lowest: "
                "say --mode max, or --mode min (mode= in Python)"
            )
        return "min"
    if mode not in ("min", "max"):
        raise ValueError(f"mode must be 'min' or 'max', not {mode!r}")
    return mode  # type: ignore[return-value]


def sounds_like_accuracy(metric_name: str) -> bool:
    """Whether higher is better for a metric, as far as its name tells.

    Example:
        >>> sounds_like_accuracy("eval.valAcc"), sounds_like_accuracy("acc_loss")
        (True, False)
    """
    last = metric_name.rpartition(".")[2]
    words = {word.lower() for word in _WORD.findall(last)}
    return bool(words & _HIGHER) and not words & _LOWER
