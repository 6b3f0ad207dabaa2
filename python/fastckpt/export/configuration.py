"""The configuration of a model, under whatever key a checkpoint has it. Imports no torch."""

from __future__ import annotations

from typing import Any

_MANAGERS_KEY = "model_config"
#: The keys that training scripts use: those of nanoGPT, Lightning and many others.
CONFIG_KEYS = (
    _MANAGERS_KEY,
    *("gpt_cfg", "config", "model_args", "args", "hyper_parameters", "hparams", "cfg"),
)
# A CheckpointManager writes its own configuration under "config"; it has these fields.
_MANAGER_FIELDS = {"checkpoint_dir", "save_total_limit", "metric_name"}


def configurations(root: Any) -> dict[str, Any]:
    """Return the configurations of a saved object, by key; None is not a configuration.

    In a checkpoint of a `CheckpointManager` only ``"model_config"`` is one.
    """
    if not isinstance(root, dict):
        return {}
    keys = (_MANAGERS_KEY,) if _is_managers(root.get("config")) else CONFIG_KEYS
    return {key: root[key] for key in keys if root.get(key) is not None}


def _is_managers(config: Any) -> bool:
    return isinstance(config, dict) and config.keys() >= _MANAGER_FIELDS
