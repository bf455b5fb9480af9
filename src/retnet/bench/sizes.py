"""Sizes of models, named once: ours, and the softmax-attention decoder with as many parameters."""

from dataclasses import dataclass

from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, LayerConfig
from retnet.model.rivals import rival

HEAD_WIDTH = 64  # of the attention decoders, as the Llamas of this size have it


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A decoder with tied embeddings that torchscale can build too, with the same products.

    Attributes:
        name: of the size, in records.
        d_model: D.
        value_width: D_v of all heads together.
        num_heads: H.
        ffn_width: width inside the GLU.
        num_layers: layers.
        vocab_size: V.
    """

    name: str = "small"
    d_model: int = 512
    value_width: int = 1024
    num_heads: int = 2
    ffn_width: int = 1024
    num_layers: int = 4
    vocab_size: int = 4096

    def config(self) -> DecoderConfig:
        """Our decoder of this size."""
        layer = LayerConfig(
            mixer=RetentionConfig(num_heads=self.num_heads, value_width=self.value_width),
            channel=GLUConfig(width=self.ffn_width),
            repeat=self.num_layers,
        )
        return DecoderConfig(
            d_model=self.d_model,
            layers=(layer,),
            vocab_size=self.vocab_size,
            tie_embeddings=True,
        )

    @property
    def attention_heads(self) -> int:
        """Heads of the attention decoder: of width 64, and at least two."""
        return max(self.d_model // HEAD_WIDTH, 2)

    def attention_config(self) -> DecoderConfig:
        """The decoder with attention and as many parameters: its channel mixers are wider."""
        return rival(self.config(), "attention", num_heads=self.attention_heads)

    @property
    def attention_ffn_width(self) -> int:
        """Width inside the GLUs of that decoder."""
        channel = self.attention_config().layers[0].channel
        assert isinstance(channel, GLUConfig)
        return channel.width


SMALL = ModelSize()
MEDIUM = ModelSize(
    name="medium", d_model=768, value_width=1536, num_heads=3, ffn_width=1536, num_layers=6
)
TINY = ModelSize(
    name="tiny",  # products of 8 bits need inputs of a multiple of 32: some have it, some not
    d_model=48,
    value_width=96,
    num_heads=2,
    ffn_width=32,
    num_layers=2,
    vocab_size=64,
)
LONG_TEXT = ModelSize(
    name="long text",
    d_model=256,
    value_width=512,
    num_heads=4,
    ffn_width=512,
    num_layers=4,
    vocab_size=257,
)
