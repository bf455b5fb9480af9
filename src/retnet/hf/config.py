"""The model's config as `transformers` wants it: our decoder config under one key."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from retnet.hub import from_dict, to_dict
from retnet.hub.checkpoint import MODEL_TYPE
from retnet.model import DecoderConfig


class RetNetDecoderConfig(PreTrainedConfig):
    """What `config.json` of a checkpoint folder holds.

    Sizes stand in `decoder` alone; the names that tools of this library ask for (`vocab_size`,
    `hidden_size`, ...) are read from there, so that the file holds nothing twice.

    Attributes:
        decoder: a `DecoderConfig` as plain values, see `retnet.hub.to_dict`.
        bos_token_id: begins every document.
        eos_token_id: ends one; None stands for BOS, since a document ends where the next begins.
        pad_token_id: fills rows up; None stands for EOS. Padding is known by the attention mask
            only, so any id will do.
        use_cache: return the state after the tokens, outside of training.

    Example:
        >>> from retnet.model import preset
        >>> config = RetNetDecoderConfig.of(preset("small-1m", vocab_size=300))
        >>> config.hidden_size, config.decoder_config.num_layers
        (128, 4)
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    # Written out: the generated one would be checked by its fields and refuse further keys.
    def __init__(
        self,
        decoder: dict[str, Any] | None = None,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        self.decoder = decoder
        self.bos_token_id = bos_token_id
        self.eos_token_id = bos_token_id if eos_token_id is None else eos_token_id
        if pad_token_id is None:
            first = self.eos_token_id
            pad_token_id = first[0] if isinstance(first, list) else first
        self.pad_token_id = pad_token_id
        self.use_cache = use_cache
        super().__init__(**kwargs)

    @classmethod
    def of(cls, config: DecoderConfig, **kwargs: Any) -> "RetNetDecoderConfig":
        """Wrap a decoder's config; `kwargs` are this class's other attributes."""
        return cls(decoder=to_dict(config), **kwargs)

    @property
    def decoder_config(self) -> DecoderConfig:
        """The decoder's config, checked.

        Raises:
            ValueError: there is none, or it has an unknown key or a value out of range.
        """
        if self.decoder is None:
            raise ValueError(
                "the config has no `decoder`; make one with RetNetDecoderConfig.of(preset(...)), "
                "or read a folder that `retnet train` wrote"
            )
        return from_dict(DecoderConfig, self.decoder, "decoder")

    def get_text_config(self, *_args: Any, **_kwargs: Any) -> "RetNetDecoderConfig":
        """Return itself; otherwise `decoder` would be taken for the config of a second model."""
        return self

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        return self._decoder.get("vocab_size", 0)

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self._set("vocab_size", value)

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head has the embedding's weights."""
        return self._decoder.get("tie_embeddings", False)

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self._set("tie_embeddings", value)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return self._decoder.get("d_model", 0)

    @property
    def num_hidden_layers(self) -> int:
        """L, the number of layers."""
        return self.decoder_config.num_layers if self.decoder else 0

    @property
    def _decoder(self) -> dict[str, Any]:
        # `transformers` makes a config without arguments to learn the defaults of this class
        return self.decoder or {}

    def _set(self, key: str, value: Any) -> None:
        self.decoder = self._decoder | {key: value}  # never in place: copies share the dictionary


__all__ = ["RetNetDecoderConfig"]
