"""What clients may send: OpenAI's fields, and a few of ours. Nothing else is accepted."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Text = Annotated[str, Field(min_length=1, max_length=1000)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
SessionName = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """A body whose fields are all known, of the right type, and finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """How to stream."""

    include_usage: bool | None = None


class StructuredOutputs(Strict):
    """What the text must match; exactly one of them."""

    json_schema: dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: Annotated[list[Text], Field(min_length=1, max_length=1000)] | None = None
    grammar: str | None = None


class Choosing(Strict):
    """What all requests for text have in common: a model, and how to choose tokens.

    `top_k`, `min_p`, `repetition_penalty` and `structured_outputs` are ours. `user` is accepted and
    not used.
    """

    model: str
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for key in bias or {}:
            if not (key.isascii() and key.isdecimal() and len(key) < 10):
                raise ValueError("its keys must be ids of tokens, such as '42'")
        return bias


class Writing(Choosing):
    """What completions and chats have in common.

    `session`, `state` and `return_state` are ours.
    """

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    session: SessionName | None = None
    state: Annotated[str, Field(min_length=1)] | None = None
    return_state: bool | None = None


class CompletionBody(Writing):
    """A request to `/v1/completions`."""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None
    suffix: None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class JsonSchema(Strict):
    """A schema with a name."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(Writing):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


Tag = Annotated[str, Field(max_length=64)]


class SpokenPart(Strict):
    """A part of a message to a response; what others have said is given as they said it."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Strict):
    """A message to a response, or one of a response."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[SpokenPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class TextFormat(Strict):
    """What a response must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextConfig(Strict):
    """How a response is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Strict):
    """How to stream a response."""

    include_obfuscation: Literal[False] | None = None


class ResponseBody(Choosing):
    """A request to `/v1/responses`.

    `prompt_cache_key`, `safety_identifier`, `service_tier` and `parallel_tool_calls` are accepted
    and not used.
    """

    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: Annotated[dict[Tag, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | (
        None
    ) = None
    text: TextConfig | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: ResponseStreamOptions | None = None
    background: Literal[False] | None = None
    parallel_tool_calls: bool | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None


class TokenizeBody(Strict):
    """A request to `/tokenize`: text, or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Whether BOS begins a prompt's tokens; it does unless this is false."""


class DetokenizeBody(Strict):
    """A request to `/detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class ForkBody(Strict):
    """A request to fork a session."""

    new_name: SessionName
    version: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None


class RenameBody(Strict):
    """A request to rename a session."""

    new_name: SessionName


class RollbackBody(Strict):
    """A request to go back to an earlier turn."""

    version: Annotated[int, Field(ge=0, lt=1 << 31)]
