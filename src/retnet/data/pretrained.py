"""A tokenizer that somebody has published on the Hugging Face hub."""

import contextlib
from pathlib import Path

from retnet.data.rows import brief
from retnet.data.tokenizer import Tokenizer


def load_pretrained(name: str, base: Path) -> Tokenizer:
    """Load a tokenizer from a folder, or from a model on the hub, which is downloaded once.

    Args:
        name: a folder, or `owner/name` of a model, with `@REVISION` after it if wanted.
        base: where the path of a folder starts if it is relative.

    Raises:
        ValueError: there is neither such a folder nor such a model, the model has no
            tokenizer.json, or it is none that `Tokenizer` takes.
    """
    folder = base / Path(name).expanduser()
    if folder.is_dir():
        return Tokenizer.load(folder)
    import huggingface_hub  # comes with tokenizers

    repo, _, revision = name.partition("@")
    try:
        file = Path(
            huggingface_hub.hf_hub_download(repo, "tokenizer.json", revision=revision or None)
        )
    except Exception as error:  # of the library, and of whichever HTTP client it uses
        raise ValueError(
            f"tokenizer.path ({name!r}) must be a folder (relative names start at "
            f"{base.absolute()}) or a model on the hub with a tokenizer.json, and the hub says: "
            f"{brief(error)}; correct the name, see to the network, or make the file with "
            "save_pretrained() of transformers' AutoTokenizer"
        ) from error
    # Without it, a token with one of the usual names begins documents.
    with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):
        commit = file.parent.name
        huggingface_hub.hf_hub_download(repo, "tokenizer_config.json", revision=commit)
    return Tokenizer.load(file)
