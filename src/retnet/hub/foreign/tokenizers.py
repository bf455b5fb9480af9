"""The tokenizer that goes with a converted model."""

from pathlib import Path

from retnet.data import Tokenizer

BYTES = "bytes"


def find_tokenizer(
    source: Path, named: str, vocab_size: int, usual: str = ""
) -> tuple[Tokenizer | None, str]:
    """Load the tokenizer that was named, or the source's own.

    Args:
        source: the checkpoint.
        named: a tokenizer.json, its folder, or "bytes" for bytes as tokens; empty for the source's
            own, beside its weights.
        vocab_size: of the model.
        usual: what published models of this format and size have; empty if that is not known.

    Returns:
        The tokenizer, None if there is none, and what became of it in words.

    Raises:
        ValueError: it cannot be read, or has ids that the model does not know.
    """
    folder = source if source.is_dir() else source.parent
    if named == BYTES:
        tokenizer, told = Tokenizer.bytes(), "bytes as tokens"
    elif named:
        tokenizer, told = Tokenizer.load(named), named
    elif source.is_dir() and (folder / "tokenizer.json").exists():
        tokenizer, told = Tokenizer.load(folder), str(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").exists():
        return None, (
            "none: tokenizer.model is not read; make a tokenizer.json with save_pretrained() of "
            "transformers' AutoTokenizer and give it with --tokenizer"
        )
    else:
        which = f"models of this size have {usual}: give it" if usual else "give one"
        return None, (
            f"none; {which} with --tokenizer, or use token ids: retnet generate ... --ids"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer ({told}) has {tokenizer.vocab_size} ids, and the model reads "
            f"{vocab_size}; give the tokenizer that the model was trained with (--tokenizer)"
        )
    return tokenizer, told
