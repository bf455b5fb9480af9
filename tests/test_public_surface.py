"""The public surface is this list; every other name may change any day."""

import importlib
import pkgutil

import pytest

import retnet

PUBLIC: dict[str, list[str]] = {
    "retnet": ["CHANNEL_MIXERS", "Decoder", "DecoderConfig", "MIXERS", "__version__", "load"],
    "retnet.bench": [
        "BENCHES",
        "BenchResult",
        "FormRow",
        "form_disagreement",
        "run_bench",
        "show_bench",
        "update_docs",
    ],
    "retnet.cli": ["main"],
    "retnet.data": [
        "Batch",
        "Corpus",
        "DataConfig",
        "Documents",
        "Progress",
        "TokenStream",
        "Tokenizer",
        "TokenizerConfig",
        "carried_batch",
        "eval_windows",
        "find_files",
        "prepare",
        "share_rows",
        "stream_segments",
        "training_batch",
        "window_starts",
        "windows_per_epoch",
    ],
    "retnet.evaluate": [
        "NGram",
        "TextScore",
        "count_words",
        "format_bytes",
        "gzip_bits",
        "key_value_cache_bytes",
        "read_files",
        "score_files",
        "score_stream",
        "state_bytes_per_text",
        "xz_bits",
    ],
    "retnet.hf": [
        "RetNetCache",
        "RetNetDecoderConfig",
        "RetNetDecoderForCausalLM",
        "RetNetDecoderModel",
    ],
    "retnet.hub": [
        "dump_toml",
        "from_dict",
        "load",
        "load_checkpoint",
        "load_toml",
        "save_checkpoint",
        "save_weights",
        "to_dict",
        "write_atomic",
    ],
    "retnet.mixers": ["ALONE", "Branch", "BranchConfig", "CHANNEL_MIXERS", "Depth", "MIXERS"],
    "retnet.model": [
        "Completion",
        "Decoder",
        "DecoderConfig",
        "DecoderState",
        "LayerConfig",
        "PRESETS",
        "Sampling",
        "Session",
        "concat_rows",
        "copy_state",
        "generate",
        "hwfa",
        "hwfa2",
        "pack",
        "preset",
        "rival",
        "select_rows",
        "state_bytes",
        "stream",
    ],
    "retnet.ops": ["Layout", "SequenceRanks", "attention", "linear_recurrence", "retention", "wkv"],
    "retnet.reproduce": ["DemoOptions", "DemoResult", "run_demo"],
    "retnet.serve": [],
    "retnet.train": [
        "RunConfig",
        "RunSection",
        "TrainResult",
        "TrainSection",
        "TuneSection",
        "cli_config",
        "keep_freed_memory",
        "load_config",
        "plot_metrics",
        "read_metrics",
        "train",
    ],
    "retnet.types": ["Backend", "Form", "FormChoice"],
}

REMEDY = (
    "if that is meant, edit PUBLIC in tests/test_public_surface.py "
    "and say it under Unreleased in CHANGELOG.md; if not, edit __all__"
)


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names_of_a_room_are_the_pinned_ones(room: str) -> None:
    names, pinned = set(importlib.import_module(room).__all__), set(PUBLIC[room])
    assert names == pinned, (
        f"{room}.__all__ added {sorted(names - pinned)}, lost {sorted(pinned - names)}; {REMEDY}"
    )


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names_exist(room: str) -> None:
    module = importlib.import_module(room)
    missing = [name for name in PUBLIC[room] if not hasattr(module, name)]
    assert not missing, f"{room} lists names it does not have: {missing}"


def test_every_room_is_pinned() -> None:
    names = {room.name for room in pkgutil.iter_modules(retnet.__path__)} - {"__main__"}
    rooms = {"retnet", *(f"retnet.{name}" for name in names)}
    assert rooms == set(PUBLIC), (
        f"rooms that differ from the pinned ones: {sorted(rooms ^ set(PUBLIC))}; {REMEDY}"
    )


def test_unknown_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Decodr'; it has .*'Decoder'"):
        _ = retnet.Decodr  # pyright: ignore[reportAttributeAccessIssue]
