"""What a model is built from, under whatever name a checkpoint has it. Imports no torch."""

from __future__ import annotations

from typing import Any

#: What an exported file calls the configuration where its source says nothing else.
CONFIG_KEY = "model_config"
#: Keys under which training scripts save it: nanoGPT, Lightning, and what many others write.
CONFIG_KEYS = (
    CONFIG_KEY,
    *("gpt_cfg", "config", "model_args", "args", "hyper_parameters", "hparams", "cfg"),
)
# A CheckpointManager writes its own configuration under "config"; it has these fields.
_MANAGER_FIELDS = {"checkpoint_dir", "save_total_limit", "metric_name"}


def configurations(root: Any) -> dict[str, Any]:
    """Return what a saved object has under `CONFIG_KEYS`, by key.

    In a checkpoint of a `CheckpointManager` that is ``"model_config"`` alone. None is not a configuration.
    """
    if not isinstance(root, dict):
        return {}
    keys = (CONFIG_KEY,) if _is_managers(root.get("config")) else CONFIG_KEYS
    return {key: root[key] for key in keys if root.get(key) is not None}


def _is_managers(config: Any) -> bool:
    return isinstance(config, dict) and config.keys() >= _MANAGER_FIELDS
