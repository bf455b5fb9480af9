"""A run, described completely: one TOML file, one-to-one with the dataclasses below."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retnet.data import DataConfig, Tokenizer
from retnet.hub import from_dict, load_toml, to_dict
from retnet.model import DecoderConfig, preset, rival
from retnet.train.tune import TuneSection, expand_base


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Where a run lives and what its randomness comes from.

    Attributes:
        dir: the run's folder; a run that finds its own checkpoint there goes on from it.
        seed: of the first weights, the order of samples, dropout and sample texts.

    Raises:
        ValueError: dir is empty.
    """

    dir: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.dir:
            raise ValueError(
                'dir ("") must name a folder for the run, such as "runs/first"; name one, or leave '
                "it out"
            )


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How to learn. A period of 0 means only at the end.

    Attributes:
        steps: updates of the weights in the whole run.
        batch_size: windows of text in a step, over all parts of it.
        seq_len: tokens of a window.
        accumulate: parts in which a step is computed, one after the other, to need less memory.
        learning_rate: the highest.
        warmup_steps: steps over which it rises from 0 in a line.
        schedule: how it falls from there to the last step.
        decay_to: what is left of it at the last step, as a share of `learning_rate`.
        betas: AdamW's decay rates of its two averages.
        weight_decay: AdamW's, on matrices; embeddings, norms and biases have none.
        clip_norm: longer gradients are shortened to this norm; 0 leaves them alone.
        precision: of matrix products; weights, sums and states are float32 in both.
        gradient_checkpointing: keep only each layer's input for the backward pass and compute the
            rest again: far less memory for a third more work.
        carry_state: each row goes on reading where it stopped at the step before, with the state
            it had: truncated back-propagation, for documents longer than seq_len. False: windows
            from anywhere, each starting with nothing.
        shard: over how many processes one copy of the weights is spread: `full` is all, `node`
            those of one machine, `none` keeps a copy in each.
        sequence_ranks: processes that share each row, seq_len / sequence_ranks tokens each.
        log_every: steps from one line of metrics.jsonl to the next.
        log_to: where else to show the log: `tensorboard` writes event files that it reads.
        eval_every: steps from one validation to the next.
        eval_tokens: validate with this many tokens from the start of the validation text; 0 is all.
        save_every: steps from one checkpoint to the next.
        keep: checkpoints to keep; an older one serves when the newest is damaged.
        sample_every: steps from one sample text to the next.
        sample_prompt: what it continues; empty starts a document.
        sample_tokens: its length; 0 writes none.

    Raises:
        ValueError: a value is outside its range.
    """

    steps: int
    batch_size: int = 16
    seq_len: int = 512
    accumulate: int = 1
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    decay_to: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    carry_state: bool = False
    shard: Literal["full", "node", "none"] = "full"
    sequence_ranks: int = 1
    log_every: int = 10
    log_to: tuple[Literal["tensorboard"], ...] = ()
    eval_every: int = 200
    eval_tokens: int = 0
    save_every: int = 200
    keep: int = 2
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 128

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "accumulate",
            "sequence_ranks",
            "log_every",
            "keep",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1; raise it")
        for name in (
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "eval_every",
            "eval_tokens",
            "save_every",
            "sample_every",
            "sample_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be 0 or more; raise it")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulate "
                f"({self.accumulate}), the parts it is computed in; change one of them"
            )
        if self.seq_len % self.sequence_ranks:
            raise ValueError(
                f"seq_len ({self.seq_len}) must be a multiple of sequence_ranks "
                f"({self.sequence_ranks}), which share each row; change one of them"
            )
        if self.seq_len == 1:
            raise ValueError("seq_len (1) leaves nothing to look back at; take 2 or more")
        if self.learning_rate <= 0:
            raise ValueError(
                f"learning_rate ({self.learning_rate}) must be above 0; 0.002 suits small models"
            )
        if not 0 <= self.decay_to <= 1:
            raise ValueError(
                f"decay_to ({self.decay_to}) is a share of learning_rate and must be from 0 to 1"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas ({list(self.betas)}) must be two numbers in [0, 1); [0.9, 0.95] is usual"
            )
        if self.eval_tokens == 1:
            raise ValueError("eval_tokens (1) leaves nothing to predict; take 0 for all, or more")

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step learns from."""
        return self.batch_size * self.seq_len


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes.

    Attributes:
        run: folder and seed.
        data: text and tokenizer.
        model: the decoder; its vocab_size may be 0, the tokenizer's.
        train: how to learn.
        tune: the checkpoint to begin with; None begins with a new model.
    """

    run: RunSection
    data: DataConfig
    model: DecoderConfig
    train: TrainSection
    tune: TuneSection | None = None


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a run's TOML file.

    `[model]` is a full description, or `preset = "small-4m"` and whatever differs from the preset.
    With `mixer = "attention"`, or `mixer = { name = "attention", num_heads = 8 }`, it is the same
    decoder around that token mixer and with as many parameters (`retnet.model.rival`).
    Without `run.dir` the run is named after the file: `runs/<name of the file>`.

    Args:
        path: the file.
        overrides: values by dotted name, such as `{"train.steps": 100}`; they win over the file.

    Raises:
        ValueError: the file is missing or no TOML, a key is unknown (the message names the
            nearest), or a value is missing, of the wrong type or outside its range.
    """
    path = Path(path)
    return config_from_dict(load_toml(path), overrides or {}, default_dir=f"runs/{path.stem}")


def config_from_dict(
    data: Mapping[str, Any], overrides: Mapping[str, Any], *, default_dir: str
) -> RunConfig:
    """`load_config` for what a TOML file holds."""
    tables = _copy(data)
    for name, value in overrides.items():
        _put(tables, name, value)
    run = tables.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("dir", default_dir)
    if isinstance(tables.get("model"), dict):
        tables["model"] = _expand_mixer(_expand_preset(tables["model"]))
    if isinstance(tables.get("tune"), dict):
        tables = expand_base(tables, Path())
    return from_dict(RunConfig, tables)


def fit_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Fill in `model.vocab_size` where it is 0, and check it where it is not.

    Raises:
        ValueError: the model has no room for the tokenizer's ids.
    """
    have, need = config.model.vocab_size, tokenizer.vocab_size
    if have == 0:
        return replace(config, model=replace(config.model, vocab_size=need))
    if have < need:
        raise ValueError(
            f"model.vocab_size ({have}) must be at least the tokenizer's ({need}); "
            "raise it, or set it to 0 to take the tokenizer's"
        )
    return config


def _expand_preset(table: dict[str, Any]) -> dict[str, Any]:
    if "preset" not in table:
        return table
    rest = {key: value for key, value in table.items() if key != "preset"}
    if "layers" in rest:
        raise ValueError(
            f'model.preset ("{table["preset"]}") and model.layers both describe the layers; '
            "delete one of them"
        )
    try:
        return to_dict(preset(table["preset"])) | rest
    except ValueError as error:
        raise ValueError(f"[model] {error}") from None


def _expand_mixer(table: dict[str, Any]) -> dict[str, Any]:
    """Replace `mixer`, which stands for a change of all layers."""
    if "mixer" not in table:
        return table
    rest = {key: value for key, value in table.items() if key != "mixer"}
    chosen = table["mixer"]
    fields = dict(chosen) if isinstance(chosen, Mapping) else {"name": chosen}
    name = str(fields.pop("name", ""))
    config = from_dict(DecoderConfig, rest)
    try:
        return to_dict(rival(config, name, **fields))
    except (TypeError, ValueError) as error:
        raise ValueError(f"[model] mixer: {error}") from None


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose tables can be changed."""
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in table.items()}


def _put(tables: dict[str, Any], name: str, value: Any) -> None:
    """Set `a.b.c` in nested tables."""
    *path, key = name.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise ValueError(f"{name} has no place: {part} is a value, not a table; correct it")
    tables[key] = value
