"""Text to token ids and back: a thin, strict wrapper around the `tokenizers` library."""

import builtins
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from retnet.data.byte_level import BOS, cut, may_cut, plain_bytes, train_bpe
from retnet.data.longest_match import END, longest_match, read_rwkv_vocabulary
from retnet.data.parallel import all_cores
from retnet.data.token_bytes import bytes_by_id

COMMON_BOS = (BOS, "<s>", "<|begin_of_text|>", "<|endoftext|>")
"""Names to look for when a tokenizer does not say which token begins a document."""

BATCH_CHARS = 1 << 20
"""Characters to hand to the library at once: enough for many cores, little in memory."""


class Tokenizer:
    """Text to ids and back, with a token that begins documents.

    Text never becomes a special token: `<|bos|>` in a text is seven ordinary characters.

    Attributes:
        vocab_size: one more than the largest id.
        bos_id: the id of the token that begins a document.
        bos_token: its name.
        end_ids: the ids that end a text: that of the configured EOS, if there is one, then BOS,
            because a document ends where the next one begins.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, bos_token: str, config: dict | None = None
    ) -> None:
        """Wrap a tokenizer of the library; `load`, `train_bpe` and `bytes` are easier.

        Args:
            backend: it is changed: padding, truncation and special tokens in text are switched off.
            bos_token: the name of the token that begins a document.
            config: further contents of tokenizer_config.json, kept by `save`; its "eos_token" ends
                texts, too.

        Raises:
            ValueError: bos_token or the EOS is not in the vocabulary, or ids cannot be mapped to
                bytes.
        """
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._config = config or {}
        self.bos_token = bos_token
        self.bos_id = _id_of(backend, bos_token, "bos_token")
        eos_id = _id_of(backend, _name_of(self._config, "eos_token") or bos_token, "eos_token")
        self.end_ids = tuple(dict.fromkeys((eos_id, self.bos_id)))
        self._backend = backend
        self._bytes_by_id = bytes_by_id(backend)
        self._may_cut = may_cut(backend)
        self.vocab_size = len(self._bytes_by_id)
        if self._bytes_by_id[self.bos_id]:
            raise ValueError(
                f"bos_token ({bos_token!r}) must be a special token, or it would begin documents "
                "wherever it stands in a text; name one that is, in tokenizer_config.json"
            )

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE; every text round-trips, whatever it was trained on.

        Args:
            texts: read once.
            vocab_size: how many tokens to aim at, bytes and BOS included; text that repeats little
                yields fewer.

        Raises:
            ValueError: vocab_size is below 257.
        """
        return cls(train_bpe(texts, vocab_size), BOS)

    @classmethod
    def bytes(cls) -> "Tokenizer":
        """Make the tokenizer whose tokens are the 256 bytes (id = value) and BOS (id 256)."""
        return cls(plain_bytes(), BOS)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Load a tokenizer.json, ours or another's, with the tokenizer_config.json beside it.

        Args:
            path: the file, or the folder that holds it; or the vocabulary of RWKV's World models,
                a .txt file.

        Raises:
            ValueError: there is no such file, it is not a tokenizer, it has no token that begins
                documents, or its ids cannot be mapped to bytes.
        """
        path = Path(path)
        if path.suffix == ".txt" and path.is_file():
            return cls(longest_match(read_rwkv_vocabulary(path)), END)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"tokenizer path ({str(path)!r}) must be a tokenizer.json or a folder that holds "
                "one, and there is none; correct the path"
            )
        backend = _read_backend(file)
        config_file = file.with_name("tokenizer_config.json")
        config = _read_config(config_file) if config_file.is_file() else {}
        template = file.with_name("chat_template.jinja")  # where newer programs write it
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        try:
            return cls(backend, _find_bos(backend, config), config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json as `transformers` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.bos_token,  # a document ends where the next one starts
            "pad_token": self.bos_token,  # any will do: the attention mask says what is padding
            "clean_up_tokenization_spaces": False,  # it would change the text
            **self._config,
            "bos_token": self.bos_token,
        }
        for name, text in (
            ("tokenizer.json", self._backend.to_str(pretty=True)),
            ("tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n"),
        ):
            temporary = folder / f".{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)

    @property
    def eos_token(self) -> str:
        """The name of the token that ends a text: BOS, where no other is configured."""
        return _name_of(self._config, "eos_token") or self.bos_token

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Names of special tokens, and their ids."""
        added = self._backend.get_added_tokens_decoder().items()
        named = {token.content: token_id for token_id, token in added if token.special}
        return {self.bos_token: self.bos_id, **named}

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns a chat into text; None for tokenizers of base models."""
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several by name
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        return template

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits, equal for tokenizers that are the same."""
        content = json.dumps([json.loads(self._backend.to_str()), self.bos_token], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS.

        Raises:
            ValueError: the text holds half of a surrogate pair, which UTF-8 cannot express.
        """
        _check_unicode(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield [bos_id, *encode(text)] for each text, many at a time on all cores.

        Yields:
            int64 arrays, (1 + number of the text's tokens,).

        Raises:
            ValueError: as `encode`.
        """
        document: list[np.ndarray] = []
        for ids, begins in self.encode_pieces(texts):
            if begins and document:
                yield np.concatenate(document)
                document = []
            document.append(ids)
        if document:
            yield np.concatenate(document)

    def encode_pieces(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, bool]]:
        """Do as `encode_documents`, with long documents in pieces, so that memory stays small.

        Yields:
            int64 ids, and whether a document begins with them; then the first is bos_id.

        Raises:
            ValueError: as `encode`.
        """
        pieces: list[str] = []
        begins: list[bool] = []
        num_chars = 0
        for text in texts:
            _check_unicode(text)
            for number, piece in enumerate(cut(text) if self._may_cut else [text]):
                pieces.append(piece)
                begins.append(number == 0)
                num_chars += len(piece)
                if num_chars >= BATCH_CHARS:
                    yield from self._encode_batch(pieces, begins)
                    pieces, begins, num_chars = [], [], 0
        yield from self._encode_batch(pieces, begins)

    def _encode_batch(
        self, pieces: list[str], begins: list[bool]
    ) -> Iterator[tuple[np.ndarray, bool]]:
        with all_cores():
            encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        for encoding, begin in zip(encodings, begins, strict=True):
            yield np.array([self.bos_id] * begin + encoding.ids, dtype=np.int64), begin

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids; special tokens vanish, broken UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        for token_id in ids:
            self._check_id(token_id)
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def id_bytes(self, token_id: int) -> builtins.bytes:
        """Return the bytes of one token, which need not be whole characters; b"" if special.

        The text of a sequence is its tokens' bytes put together (tokenizers in SentencePiece's
        manner drop a leading space of it in `decode`).

        Raises:
            ValueError: the id is outside the vocabulary.
        """
        self._check_id(token_id)
        return self._bytes_by_id[token_id]

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(
                f"token id {token_id} must be in [0, {self.vocab_size}), the tokenizer's "
                "vocabulary; use the tokenizer that the model was trained with"
            )


def _check_unicode(text: str) -> None:
    # isascii is one flag, so that ordinary text is not encoded twice
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text ({text[error.start]!r}) must be Unicode, and "
                "it is half of a surrogate pair; decode the text with errors='replace'"
            ) from error


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception: there is no less to catch
        raise ValueError(
            f"{file} must be a tokenizer.json of the tokenizers library ({error}); make it again "
            "with Tokenizer.save() or save_pretrained()"
        ) from error


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        config = error
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object ({config}); correct or delete the file")
    return config


def _id_of(backend: tokenizers.Tokenizer, token: str, role: str) -> int:
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise ValueError(
            f"{role} ({token!r}) must be in the tokenizer's vocabulary; name a token that is, in "
            "tokenizer_config.json"
        )
    return token_id


def _name_of(config: dict, role: str) -> str | None:
    named = config.get(role)
    return named.get("content") if isinstance(named, dict) else named  # older files spell it out


def _find_bos(backend: tokenizers.Tokenizer, config: dict) -> str:
    if named := _name_of(config, "bos_token"):
        return named
    for name in COMMON_BOS:
        if backend.token_to_id(name) is not None:
            return name
    raise ValueError(
        f"a token must begin documents, and there is none of the usual ones {COMMON_BOS}; name "
        'one as "bos_token" in a tokenizer_config.json beside the file'
    )
