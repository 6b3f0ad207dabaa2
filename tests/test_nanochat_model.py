"""build_model and what calls it, against a model of our own with the interface of nanochat's GPT."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastckpt
from fastckpt.nanochat import compat, model

LOGGER = "nanochat.checkpoint_manager"


@dataclass
class Config:
    sequence_len: int = 16
    vocab_size: int = 64
    n_layer: int = 3
    n_embd: int = 8
    window_pattern: str = "SSSL"


class Model(nn.Module):
    """Made on the meta device; its rotary tables are in no file; its embedding may be bf16."""

    cos: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert torch.empty(0).device.type == "meta"
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h": nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(config.n_layer)),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.resid_lambdas = nn.Parameter(torch.ones(config.n_layer))
        self.x0_lambdas = nn.Parameter(torch.zeros(config.n_layer))
        self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.register_buffer("cos", torch.empty(config.sequence_len, 4), persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter)
        self.cos = rotary_table(self.config).to(self.cos.device)


def rotary_table(config: Config) -> Tensor:
    return torch.outer(torch.arange(config.sequence_len), torch.arange(1.0, 5.0)).cos()


class Tokenizer:
    def __init__(self, vocab_size: int = 64) -> None:
        self.vocab_size = vocab_size

    def get_vocab_size(self) -> int:
        return self.vocab_size


def trained_state_dict(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the state dict of a model that was trained, its embedding in `dtype`."""
    with torch.device("meta"):
        trained = Model(Config())
    trained.to_empty(device="cpu")
    torch.manual_seed(42)
    trained.init_weights()
    trained.transformer["wte"].to(dtype)
    return trained.state_dict()


def save(run: Path, model_data: object, step: int = 5, **config: Any) -> Path:
    model_config = config or asdict(Config())
    fastckpt.save_checkpoint(run, step, model_data, None, {"model_config": model_config})
    return run


def build(
    run: Path, phase: str = "eval", device: Any = "cpu", **given: Any
) -> tuple[Any, Any, Any]:
    given = {"model_class": Model, "config_class": Config, "tokenizer": Tokenizer(), **given}
    return fastckpt.build_model(run, 5, device, phase, **given)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER)
    return caplog


def test_model_tokenizer_and_meta_come_back(tmp_path: Path) -> None:
    state_dict = trained_state_dict()
    save(tmp_path, state_dict)
    tokenizer = Tokenizer()
    built = build(tmp_path, tokenizer=tokenizer)
    assert type(built) is tuple
    gpt, same_tokenizer, meta = built
    assert same_tokenizer is tokenizer
    assert meta == {"model_config": asdict(Config())}
    assert gpt.config == Config()
    assert list(gpt.state_dict()) == list(state_dict)
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(tensor, state_dict[name])
    assert torch.equal(gpt.cos, rotary_table(Config()))  # in no file: init_weights made it
    assert all(parameter.requires_grad for parameter in gpt.parameters())
    assert {tensor.device.type for tensor in [*gpt.parameters(), *gpt.buffers()]} == {"cpu"}


@pytest.mark.parametrize(("phase", "training"), [("train", True), ("eval", False)])
def test_phase_decides_the_mode(tmp_path: Path, phase: str, training: bool) -> None:
    save(tmp_path, trained_state_dict())
    gpt, _, _ = build(tmp_path, phase)
    assert {module.training for module in gpt.modules()} == {training}


def test_invalid_phase_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"^Invalid phase: test$"):
        build(tmp_path / "none", "test")


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_loaded_tensors_become_the_parameters_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Any
) -> None:
    save(tmp_path, trained_state_dict())
    loaded: dict[str, Tensor] = {}

    def load(*args: Any) -> Any:
        files = fastckpt.load_checkpoint(*args)
        loaded.update(files[0])
        return files

    monkeypatch.setattr(model, "load_checkpoint", load)
    gpt, _, _ = build(tmp_path, "train", device)
    for name, parameter in gpt.named_parameters():
        assert parameter.data_ptr() == loaded[name].data_ptr()


def test_training_the_built_model_leaves_the_file_alone(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict())
    before = (tmp_path / "model_000005.pt").read_bytes()
    gpt, _, _ = build(tmp_path, "train")
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1.0)
    sum(parameter.square().sum() for parameter in gpt.parameters()).backward()
    optimizer.step()
    assert (tmp_path / "model_000005.pt").read_bytes() == before


def test_random_state_is_consumed_by_init_weights_alone(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict())
    torch.manual_seed(7)
    build(tmp_path)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    with torch.device("meta"):
        reference = Model(Config())
    reference.to_empty(device="cpu")
    reference.init_weights()
    assert torch.equal(torch.get_rng_state(), after)


def test_meta_device(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict(torch.bfloat16))
    gpt, _, _ = build(tmp_path, device="meta")
    assert {parameter.device.type for parameter in gpt.parameters()} == {"meta"}
    assert gpt.transformer["wte"].weight.dtype == torch.bfloat16  # float32 is for cpu and mps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bfloat16_alone_becomes_float32_on_the_cpu(
    tmp_path: Path, dtype: torch.dtype, log: pytest.LogCaptureFixture
) -> None:
    state_dict = trained_state_dict(dtype)
    save(tmp_path, state_dict)
    log.clear()
    gpt, _, _ = build(tmp_path)
    weight = gpt.transformer["wte"].weight
    assert weight.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.equal(weight, state_dict["transformer.wte.weight"].to(weight.dtype))
    line = "Converting 1 tensors of the model data from bfloat16 to float32 for cpu"
    assert (line in log.messages) == (dtype == torch.bfloat16)


def test_bfloat16_becomes_float32_on_mps_and_stays_on_cuda() -> None:
    model_data = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2)}
    widened = compat.widen_bfloat16(model_data, torch.device("mps"))
    assert (type(widened), widened["a"].dtype, widened["b"]) == (
        dict,
        torch.float32,
        model_data["b"],
    )
    kept = compat.widen_bfloat16(model_data, torch.device("cuda"))
    assert (type(kept), kept["a"]) == (dict, model_data["a"])


def test_log_of_a_checkpoint_that_needs_no_patch(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, trained_state_dict())
    log.clear()
    build(tmp_path)
    assert log.messages == [f"Building model with config: {asdict(Config())}"]


def test_old_checkpoint_is_patched_and_each_patch_logged(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    state_dict = trained_state_dict()
    for name in ("resid_lambdas", "x0_lambdas"):
        del state_dict[name]
    old_config = {key: value for key, value in asdict(Config()).items() if key != "window_pattern"}
    save(tmp_path, state_dict, **old_config)
    log.clear()
    gpt, _, meta = build(tmp_path)
    assert meta["model_config"] == old_config | {"window_pattern": "L"}
    assert gpt.config.window_pattern == "L"
    assert torch.equal(gpt.resid_lambdas, torch.ones(3))
    assert torch.equal(gpt.x0_lambdas, torch.zeros(3))
    assert log.messages == [
        "Patching missing window_pattern in model config to 'L'",
        f"Building model with config: {meta['model_config']}",
        "Patching missing resid_lambdas in model data to 1.0",
        "Patching missing x0_lambdas in model data to 0.0",
    ]
    assert {record.levelno for record in log.records} == {logging.INFO}


def test_patched_parameters_are_where_the_others_are(tmp_path: Path) -> None:
    state_dict = trained_state_dict()
    del state_dict["resid_lambdas"]
    save(tmp_path, state_dict)
    gpt, _, _ = build(tmp_path, device="meta")
    assert gpt.resid_lambdas.device.type == "meta"


def test_higher_ranks_are_silent(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, {f"module.{name}": tensor for name, tensor in trained_state_dict().items()})
    monkeypatch.setenv("RANK", "2")
    log.clear()
    build(tmp_path)
    assert log.messages == []


@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("_orig_mod.", ["_orig_mod."]),
        ("module.", ["module."]),
        ("module._orig_mod.", ["module.", "_orig_mod."]),
        ("_orig_mod.module.", ["_orig_mod.", "module."]),
        ("module.module.", ["module.", "module."]),
    ],
)
def test_prefixes_of_wrappers_are_removed(
    tmp_path: Path, log: pytest.LogCaptureFixture, prefix: str, removed: list[str]
) -> None:
    state_dict = trained_state_dict()
    save(tmp_path, {prefix + name: tensor for name, tensor in state_dict.items()})
    log.clear()
    gpt, _, _ = build(tmp_path)
    for name, tensor in gpt.state_dict().items():
        assert torch.equal(tensor, state_dict[name])
    count = len(state_dict)
    assert log.messages[:-1] == [
        f"Removing prefix '{part}' from {count} keys of the model data" for part in removed
    ]


def test_compile_prefix_is_removed_key_by_key(tmp_path: Path) -> None:
    state_dict = trained_state_dict()
    state_dict["_orig_mod.lm_head.weight"] = state_dict.pop("lm_head.weight")
    save(tmp_path, state_dict)
    gpt, _, _ = build(tmp_path)
    assert torch.equal(gpt.lm_head.weight, state_dict["_orig_mod.lm_head.weight"])


def test_prefixes_that_are_names_of_the_model_stay() -> None:
    model_data = {"module.a": torch.ones(1), "head": torch.ones(1), "h._orig_mod.b": torch.ones(1)}
    stripped = compat.strip_wrapper_prefixes(dict(model_data))
    assert list(stripped) == list(model_data)
    assert compat.strip_wrapper_prefixes({}) == {}


def test_two_keys_of_one_parameter_are_refused() -> None:
    with pytest.raises(fastckpt.FormatError, match=r"'a' and '_orig_mod.a', which both mean"):
        compat.strip_wrapper_prefixes({"a": torch.ones(1), "_orig_mod.a": torch.zeros(1)})


def test_state_dict_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state_dict = trained_state_dict()
    save(tmp_path, state_dict | {"unknown": torch.ones(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*unknown"):
        build(tmp_path)
    del state_dict["smear_lambda"]
    save(tmp_path, state_dict)
    with pytest.raises(RuntimeError, match=r"Missing key.*smear_lambda"):
        build(tmp_path)


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], {1: torch.ones(3)}])
def test_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    save(tmp_path, content)
    with pytest.raises(fastckpt.FormatError, match=r"model_000005.pt holds no state dict"):
        build(tmp_path)


def test_meta_without_model_config_is_a_key_error(tmp_path: Path) -> None:
    fastckpt.save_checkpoint(tmp_path, 5, trained_state_dict(), None, {"step": 5})
    with pytest.raises(KeyError, match="model_config"):
        build(tmp_path)


def test_unknown_config_key_is_a_type_error(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict(), **asdict(Config()), from_the_future=1)
    with pytest.raises(TypeError, match="from_the_future"):
        build(tmp_path)


def test_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict())
    message = "^Tokenizer vocab size 65 does not match model config vocab size 64$"
    with pytest.raises(AssertionError, match=message):
        build(tmp_path, tokenizer=Tokenizer(65))


# Where the model is found, and where its classes come from.


def test_load_model_from_dir_guesses_tag_and_step(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    state_dict = trained_state_dict()
    for tag, step in (("d4", 30), ("d12", 10), ("d12", 20)):
        save(tmp_path / tag, state_dict | {"smear_lambda": torch.tensor([step * 1.0])}, step)
    given: dict[str, Any] = {"model_class": Model, "config_class": Config, "tokenizer": Tokenizer()}
    log.clear()
    gpt, _, _ = fastckpt.load_model_from_dir(tmp_path, "cpu", "eval", **given)
    assert gpt.smear_lambda.item() == 20.0
    assert log.messages[:2] == [
        "No model tag provided, guessing model tag: d12",
        f"Loading model from {tmp_path}/d12 with step 20",
    ]
    log.clear()
    gpt, _, _ = fastckpt.load_model_from_dir(str(tmp_path), "cpu", "train", "d12", 10, **given)
    assert gpt.smear_lambda.item() == 10.0
    assert gpt.training
    assert log.messages[0] == f"Loading model from {tmp_path}/d12 with step 10"


@pytest.mark.parametrize(
    ("source", "directory"),
    [("base", "base_checkpoints"), ("sft", "chatsft_checkpoints"), ("rl", "chatrl_checkpoints")],
)
def test_load_model_finds_the_directory_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, directory: str
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save(tmp_path / directory / "d3", trained_state_dict())
    given: dict[str, Any] = {"model_class": Model, "config_class": Config, "tokenizer": Tokenizer()}
    gpt, _, _ = fastckpt.load_model(source, torch.device("cpu"), phase="eval", **given)
    assert gpt.config == Config()
    gpt, _, _ = fastckpt.load_model(source, "cpu", "train", model_tag="d3", step=5, **given)
    assert gpt.training


def test_without_nanochat_the_error_says_what_to_give(tmp_path: Path) -> None:
    save(tmp_path, trained_state_dict())
    for missing, name in (
        ("model_class", "GPT"),
        ("config_class", "GPTConfig"),
        ("tokenizer", "get_tokenizer"),
    ):
        message = f"nanochat's {name} is needed: install nanochat, or .* as {missing}="
        without: dict[str, Any] = {missing: None}
        with pytest.raises(ModuleNotFoundError, match=message):
            build(tmp_path, **without)


@pytest.fixture
def installed_nanochat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a nanochat whose GPT is our model, and whose checkpoint manager must not be used."""
    package = tmp_path / "site" / "nanochat"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "checkpoint_manager.py").write_text("raise AssertionError('is to be replaced')\n")
    (package / "gpt.py").write_text(f"import sys\ntest = sys.modules[{__name__!r}]\n")
    with open(package / "gpt.py", "a") as file:
        file.write("GPT, GPTConfig = test.Model, test.Config\n")
    (package / "tokenizer.py").write_text(f"import sys\ntest = sys.modules[{__name__!r}]\n")
    with open(package / "tokenizer.py", "a") as file:
        file.write("get_tokenizer = test.Tokenizer\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "nanochat"]:
        del sys.modules[name]


def test_classes_come_from_nanochat_and_only_when_needed(
    tmp_path: Path, installed_nanochat: Path
) -> None:
    run = save(tmp_path / "d3", trained_state_dict())
    fastckpt.load_checkpoint(run, 5, "cpu")
    build(run)
    assert "nanochat" not in sys.modules
    gpt, tokenizer, _ = fastckpt.build_model(run, 5, torch.device("cpu"), "eval")
    assert (type(gpt).__name__, type(tokenizer).__name__) == ("Model", "Tokenizer")
    assert "nanochat.checkpoint_manager" not in sys.modules


def test_what_nanochat_itself_misses_is_said_as_it_is(
    tmp_path: Path, installed_nanochat: Path
) -> None:
    (installed_nanochat / "gpt.py").write_text("import surely_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'surely_not_installed'"):
        fastckpt.build_model(tmp_path, 5, "cpu", "eval")
