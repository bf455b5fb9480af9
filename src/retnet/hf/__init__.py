"""HF: our decoder as a model of the `transformers` library, which `import retnet.hf` tells of it.

After that its Auto classes read every checkpoint folder that we write, and `generate`, `pipeline`,
`Trainer` and PEFT work on it as on their own models. Nothing else of `retnet` needs this room.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "retnet.hf needs the transformers library, which is missing; pip install 'retnet[hf]'"
    ) from error

from retnet.hf.cache import RetNetCache
from retnet.hf.config import RetNetDecoderConfig
from retnet.hf.model import RetNetDecoderForCausalLM, RetNetDecoderModel

transformers.AutoConfig.register(RetNetDecoderConfig.model_type, RetNetDecoderConfig, exist_ok=True)
transformers.AutoModel.register(RetNetDecoderConfig, RetNetDecoderModel, exist_ok=True)
transformers.AutoModelForCausalLM.register(
    RetNetDecoderConfig, RetNetDecoderForCausalLM, exist_ok=True
)

__all__ = [
    "RetNetCache",
    "RetNetDecoderConfig",
    "RetNetDecoderForCausalLM",
    "RetNetDecoderModel",
]
