"""The decoder as model classes of `transformers`: our modules and maths, their calls."""
# ruff: noqa: RUF012  (the library declares these attributes of its classes as it does)

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from retnet.hf.cache import RetNetCache
from retnet.hf.config import RetNetDecoderConfig
from retnet.hf.names import add_prefix, register_names
from retnet.model import Decoder
from retnet.model.decoder import Layer, draw_embeddings, draw_head, run_body
from retnet.ops import Layout


class RetNetPreTrainedModel(PreTrainedModel):
    """What both model classes tell the library about themselves."""

    config_class = RetNetDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Layer"]
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {"hidden_states": Layer}
    # Their means of splitting a sequence know attention only; ours is in retnet.train.
    _supports_context_parallel = False
    # Generation that drafts tokens and takes them back is refused: a state cannot give them back.
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what a file may lack, a new head or embedding; `Decoder` draws all the rest."""
        body = cast(RetNetDecoderModel, self.base_model)
        in_layers = any(module is part for part in body.layers.modules())
        if isinstance(module, nn.Embedding | nn.Linear) and not in_layers:
            draw = draw_embeddings if isinstance(module, nn.Embedding) else draw_head
            if not getattr(module.weight, "_is_hf_initialized", False):
                draw(module.weight, body.decoder_config)
            return
        raise ValueError(
            f"the checkpoint lacks tensors of {module}; only the head may be missing: restore the "
            "file, or train a model from the start"
        )


class RetNetDecoderModel(RetNetPreTrainedModel):
    """A `Decoder` without its head.

    It holds the modules that a `Decoder` would hold and runs them with the same function.

    Attributes:
        decoder_config: what the modules were made from.
        gradient_checkpointing: as in `Decoder`; `gradient_checkpointing_enable()` sets it.
    """

    # the files of complete models have a head
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: RetNetDecoderConfig) -> None:
        super().__init__(config)
        decoder = Decoder(config.decoder_config)
        self.decoder_config = decoder.config
        self.embed_tokens = decoder.embed_tokens
        self.embed_norm = decoder.embed_norm
        self.layers = decoder.layers
        self.norm = decoder.norm
        self.gradient_checkpointing = False
        for parameter in self.parameters():
            # drawn already, unless the file will bring them
            parameter._is_hf_initialized = not parameter.is_meta  # type: ignore[attr-defined]
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden vectors of the tokens, and the state after them.

        Args:
            input_ids: token ids, (B, T).
            attention_mask: 0 at padding, anywhere: a padded token changes nothing. (B, T), or
                (B, tokens in the cache + T).
            position_ids: a 0 begins a document, before which the state is reset, as batches of
                packed documents have it; nothing else is read from them. (B, T) or (1, T).
            past_key_values: what came before, and where the state after the tokens goes.
            inputs_embeds: vectors in place of the embeddings of `input_ids`, (B, T, D).
            use_cache: return the state; None asks the config, and says no in training.

        Raises:
            ValueError: both or neither of ids and vectors are given, there are no tokens, the mask
                has another shape, or the cache is of another model or batch.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, one of the two")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        B, T = x.shape[:2]
        cache = _checked(past_key_values, B)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if cache is None and use_cache:
            cache = RetNetCache()
        state = None if cache is None else cache.state
        layout = Layout.of(
            B,
            T,
            position=None if state is None else state.position,
            valid=_valid(attention_mask, B, T, 0 if cache is None else cache.num_tokens),
            starts=_starts(position_ids, B, T, fresh=state is None),
            device=x.device,
        )
        h, state = run_body(self, self.decoder_config, x, state, layout)
        if cache is not None:
            cache.advance(state, T)
        return BaseModelOutputWithPast(last_hidden_state=h, past_key_values=cache)


class RetNetDecoderForCausalLM(RetNetPreTrainedModel, GenerationMixin):
    """The whole `Decoder`: its logits, and a loss when there are labels."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: RetNetDecoderConfig) -> None:
        super().__init__(config)
        self.model = RetNetDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(add_prefix)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, the loss, and the state after the tokens.

        Args:
            input_ids: see `RetNetDecoderModel.forward`, as for all that is not named here.
            attention_mask: likewise.
            past_key_values: likewise.
            inputs_embeds: likewise.
            labels: the tokens themselves, (B, T), -100 where none is asked: they are shifted here.
            use_cache: likewise.
            logits_to_keep: for so many last tokens, or for those with these indices, (places,); 0
                stands for all.
            kwargs: `position_ids`, `output_hidden_states`, and what the loss takes, such as
                `num_items_in_batch`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        h = outputs.last_hidden_state
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(h[:, places])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as every model of the library does, and refuse ids that a cache has read.

        Raises:
            ValueError: nothing is new: to go on with a cache, give all ids, or those that it has
                not read and an attention mask over all.
        """
        cache = kwargs.get("past_key_values")
        names = ("attention_mask", "input_ids", "inputs_embeds")
        over_all = [t for t in (*map(kwargs.get, names), inputs) if t is not None]
        if over_all and isinstance(cache, RetNetCache) and cache.num_tokens:
            total = over_all[0].shape[1]
            if total <= cache.num_tokens:
                raise ValueError(
                    f"the cache has read {cache.num_tokens} tokens of each row, and there are "
                    f"{total}; give all ids, or the new ones and an attention_mask over all"
                )
        return cast(Any, super()).generate(inputs, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Have `generate` use our state and not a cache of keys and values."""
        if kind := generation_config.cache_implementation:
            raise ValueError(
                f'cache_implementation ("{kind}") must be unset: there is one kind of state'
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = RetNetCache()
            return None
        return cast(Any, super())._prepare_cache_for_generation(
            generation_config, model_kwargs, *args, **kwargs
        )


def _checked(cache: Cache | None, B: int) -> RetNetCache | None:
    if cache is not None and not isinstance(cache, RetNetCache):
        raise ValueError(
            f"past_key_values ({type(cache).__name__}) must be a retnet.hf.RetNetCache; leave it "
            "out and the model makes one"
        )
    if cache is not None and cache.batch_size not in (-1, B):
        raise ValueError(
            f"the cache has {cache.batch_size} rows and the batch {B}; they must be equal: "
            "cache.batch_repeat_interleave and cache.batch_select_indices change the cache's"
        )
    return cache


def _valid(mask: Tensor | None, B: int, T: int, num_past: int) -> Tensor | None:
    """Where the T tokens are no padding, (B, T); None if none is."""
    if T == 0:
        raise ValueError(f"the batch has shape ({B}, 0); it must have at least one token a row")
    if mask is None:
        return None
    widths = (T, num_past + T)
    if mask.ndim != 2 or mask.shape[0] != B or mask.shape[1] not in widths:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; it must have {B} rows and "
            f"{' or '.join(str(w) for w in dict.fromkeys(widths))} columns, with 0 at padding and "
            "1 elsewhere: what a token sees is not for a mask to say"
        )
    valid = mask[:, -T:].bool()
    return None if valid.all() else valid


def _starts(position_ids: Tensor | None, B: int, T: int, *, fresh: bool) -> Tensor | None:
    """Where documents begin, (B, T); None if they do so with a fresh state only."""
    if position_ids is None:
        return None
    starts = (position_ids == 0).expand(B, T)
    return starts if starts[:, 1 if fresh else 0 :].any() else None


register_names(RetNetDecoderForCausalLM.__name__)

__all__ = ["RetNetDecoderForCausalLM", "RetNetDecoderModel", "RetNetPreTrainedModel"]
