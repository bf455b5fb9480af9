"""Fine-tuning: a run that begins with a trained checkpoint, and what of it the run learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from retnet.data import Tokenizer
from retnet.hub import from_dict, load_checkpoint, save_weights, to_dict
from retnet.hub.adapter import (
    AdapterInfo,
    fingerprint,
    is_adapter,
    read_info,
    relative_base,
    save_adapter,
)
from retnet.hub.checkpoint import read_config
from retnet.hub.lora import LoraInfo, peft_name
from retnet.model import Decoder, DecoderConfig
from retnet.model.initial_state import add_initial_state, is_initial

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TuneSection:
    """Which checkpoint a run begins with, and what it learns.

    Attributes:
        base: folder of the checkpoint; the run takes its model and its tokenizer.
        method: `full` learns all weights and saves a checkpoint of its own. `lora` learns an
            update of low rank for some matrices (Hu et al. 2021, arXiv:2106.09685), `state` the
            states with which documents begin; both save an adapter, which needs the base.
        rank: of LoRA's updates.
        alpha: LoRA's updates are multiplied by alpha / rank.
        targets: how the names of the linear layers end that LoRA updates; `all-linear` is all of
            them but the head.

    Raises:
        ValueError: a value is outside its range.
    """

    base: str
    method: Literal["full", "lora", "state"]
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if not self.base:
            raise ValueError(
                'base ("") must be the folder of a checkpoint, such as "runs/demo"; name it'
            )
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be at least 1; a rank of 8 with twice "
                    "that alpha is usual"
                )
        if not self.targets:
            raise ValueError(
                f'targets ([]) must name at least one linear layer; "{ALL_LINEAR}" is all of them'
            )


def expand_base(tables: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Fill in `[model]` and `[data.tokenizer]` of a run's tables, which are those of `tune.base`.

    Args:
        tables: what a run's TOML file holds, `[tune]` included.
        root: where relative paths start.

    Raises:
        ValueError: the base is no checkpoint with a tokenizer, or the tables say otherwise.
    """
    tune, data = tables["tune"], tables.get("data")
    base = tune.get("base") if isinstance(tune, Mapping) else None
    if not isinstance(base, str) or not isinstance(data, Mapping):
        return dict(tables)  # what is wrong is said when the config is built
    folder = _checkpoint(base, root)
    try:
        config = read_config(folder)
    except ValueError as error:
        raise ValueError(f'tune.base ("{base}") must be a checkpoint: {error}') from None
    if not (folder / "tokenizer.json").exists():
        raise ValueError(
            f'tune.base ("{base}") has no tokenizer.json, and a run must go on with its base\'s '
            "tokens; copy the tokenizer there"
        )
    tokenizer = {"kind": "file", "path": base}
    model, tokens = tables.get("model"), data.get("tokenizer")
    said = {
        "model": not isinstance(model, Mapping)
        or from_dict(DecoderConfig, model, "model") == config,
        # of the other keys, run.toml has the defaults
        "data.tokenizer": not isinstance(tokens, Mapping) or tokenizer.items() <= tokens.items(),
    }
    for name, same in said.items():
        if not same:
            raise ValueError(
                f"[{name}] differs from that of tune.base ({base}); delete [{name}]: a run with "
                "[tune] takes its base's"
            )
    return {**tables, "model": to_dict(config), "data": {**data, "tokenizer": tokenizer}}


def starting_model(
    tune: TuneSection | None, config: DecoderConfig, *, root: Path, folder: Path
) -> tuple[Decoder, AdapterInfo | None]:
    """Make the model to train: a new one, or a base of which only that learns which should.

    New weights are drawn from torch's random numbers; new states are zero. A fine-tuned model
    computes at first what its base does.

    Args:
        tune: what to do; None makes a new model.
        config: the run's `[model]`.
        root: where relative paths start.
        folder: the run's, where the adapter will be.

    Returns:
        The model, float32 and in training mode; and the adapter that it learns, None if it learns
        all weights.

    Raises:
        ValueError: the base is no checkpoint or not the one that `[model]` describes, a target is
            no linear layer, or PEFT is missing.
    """
    if tune is None:
        return Decoder(config).train(), None
    base = _checkpoint(tune.base, root)
    model, _ = load_checkpoint(base)
    if model.config != config:
        raise ValueError(
            f"[model] is not that of tune.base ({tune.base}); delete [model]: a run with [tune] "
            "takes its base's"
        )
    if tune.method == "full":
        return model.float().train(), None
    found = fingerprint(model)
    model = model.float()
    lora = None
    if tune.method == "lora":
        targets = _targets(model, tune.targets)
        lora = LoraInfo(rank=tune.rank, alpha=tune.alpha, targets=targets, base=str(base))
        _add_lora(model, tune, targets)
    else:
        model = add_initial_state(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_learned(name, tune.method))
    info = AdapterInfo(base=relative_base(base, folder), fingerprint=found, lora=lora)
    return model.train(), info


def learned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a run learns, by the names that `save_learned` gives the tensors in its file."""
    return {
        peft_name(name) if ".lora_" in name else name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_learned(
    folder: Path,
    config: DecoderConfig,
    tensors: Mapping[str, Tensor],
    adapter: AdapterInfo | None,
    tokenizer: Tokenizer,
) -> None:
    """Write a checkpoint, or an adapter where a run learns only that.

    Args:
        folder: where to.
        config: the run's `[model]`.
        tensors: those of `learned_parameters`, whole.
        adapter: what `starting_model` returned, with the step; None for all weights.
        tokenizer: written beside them.
    """
    if adapter is None:
        save_weights(folder, config, tensors, tokenizer)
    else:
        save_adapter(folder, adapter, tensors)
        tokenizer.save(folder)


def refuse_other_base(folder: Path, adapter: AdapterInfo | None) -> None:
    """Check that a run goes on with the base that it began with.

    Args:
        folder: where `save_learned` has written.
        adapter: what `starting_model` returned now.

    Raises:
        ValueError: it is another.
    """
    if adapter is None:
        return
    was, now = read_info(folder).fingerprint, adapter.fingerprint
    if was != now:
        raise ValueError(
            f"tune.base ({adapter.base}) has fingerprint {now[:8]} and must have {was[:8]}, with "
            "which this run began; bring that checkpoint back, or start a new run with another "
            "run.dir"
        )


def _checkpoint(base: str, root: Path) -> Path:
    folder = root / base
    if is_adapter(folder):
        raise ValueError(
            f'tune.base ("{base}") is an adapter and must be a whole checkpoint; make one of it: '
            f'retnet.hub.save_checkpoint("NEW", *retnet.load("{base}"))'
        )
    return folder


def _is_learned(name: str, method: str) -> bool:
    return ".lora_" in name if method == "lora" else is_initial(name)


def _targets(model: Decoder, targets: tuple[str, ...]) -> tuple[str, ...]:
    """How the names of the layers to update end, each checked."""
    linear = [
        name
        for name, module in model.named_modules()
        # the head's weight is used without the head's module, so a LoRA there would do nothing
        if isinstance(module, nn.Linear) and name != "lm_head"
    ]
    kinds = tuple(sorted({name.rpartition(".")[2] for name in linear}))
    if targets == (ALL_LINEAR,):
        return kinds
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(
                f'tune.targets ("{target}") must be linear layers of the base, and not its head; '
                f'choose from {", ".join(kinds)}, or "{ALL_LINEAR}"'
            )
    return tuple(sorted(targets))


def _add_lora(model: Decoder, tune: TuneSection, targets: tuple[str, ...]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model  # slow, and not always there
    except ModuleNotFoundError as error:
        raise ValueError(
            f'tune.method ("lora") needs the peft library ({error}); '
            "pip install 'retnet[peft]' brings it"
        ) from None
    config = LoraConfig(r=tune.rank, lora_alpha=tune.alpha, target_modules=list(targets))
    inject_adapter_in_model(config, model)


__all__ = [
    "TuneSection",
    "expand_base",
    "learned_parameters",
    "refuse_other_base",
    "save_learned",
    "starting_model",
]
