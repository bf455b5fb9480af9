"""From logits to the next token: penalties, temperature, truncation, and one draw per row."""

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose the next token; the defaults draw from the model's own distribution.

    The steps are applied in the order of the fields: penalties act on the logits as the model gave
    them, temperature on what they leave, and each truncation on what the one before it left,
    renormalised. (RWKV's own sampler truncates first and applies temperature last.)

    Attributes:
        repetition_penalty: divides the positive and multiplies the negative logits of tokens
            generated before; above 1 discourages them, 1 is off. Keskar et al. 2019 (CTRL),
            arXiv:1909.05858, section 4.1.
        presence_penalty: subtracted from the logit of every token generated before, however
            often; 0 is off. Completions API of OpenAI.
        frequency_penalty: subtracted once for every time that the token was generated before; 0 is
            off. Completions API of OpenAI.
        temperature: divides the logits; 0 takes the most likely token (the lowest id among
            equals) and draws nothing, so the truncations below do not matter.
        top_k: keeps the k most likely tokens; 0 is off. Fan et al. 2018, arXiv:1805.04833.
        top_p: keeps the fewest most likely tokens whose probabilities reach this sum; 1 is off.
            Holtzman et al. 2020 (nucleus), arXiv:1904.09751.
        min_p: drops tokens less likely than this fraction of the most likely one; 0 is off.
            Nguyen et al. 2024, arXiv:2407.01082.
        seed: makes draws repeatable; None takes a fresh one from the operating system.

    Raises:
        ValueError: a value is outside its range.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        # Written so that NaN, for which every comparison is false, fails too.
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty ({self.repetition_penalty}) must be positive and finite; "
                "1 turns it off, 1.2 is usual"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} ({getattr(self, name)}) must be finite; 0 turns it off")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature ({self.temperature}) must be 0 or more and finite; "
                "0 always takes the most likely token"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k ({self.top_k}) must be 0 or more; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p ({self.top_p}) must be above 0 and at most 1; 1 keeps every token, "
                "and temperature = 0 always takes the most likely one"
            )
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p ({self.min_p}) must be from 0 to 1; 0 keeps every token")

    @property
    def penalizes(self) -> bool:
        """Whether earlier tokens matter, so that someone has to count them."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


PLAIN = Sampling()


def row_generator(seed: int | None, index: int) -> torch.Generator:
    """Make the source of randomness of sample `index` of a request.

    It depends on (seed, index) alone, so a sample is the same however many are taken beside it.
    It lives on the CPU whatever the model's device, so draws are the same on both.
    """
    if seed is None:
        seed, index = secrets.randbits(63), 0
    key = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "big"))


def adjust(
    logits: Float[Tensor, "B V"],
    sampling: Sampling | Sequence[Sampling],
    seen_counts: Int[Tensor, "B V"] | None = None,
) -> Float[Tensor, "B V"]:
    """Apply penalties, temperature, top-k, top-p and min-p; their softmax is what is drawn from.

    Of tokens that are equally likely, top-k and top-p prefer the lowest ids; exactly k stay. The
    most likely token always stays. At temperature 0 only the penalties are applied. A row's
    numbers depend on its own logits and settings alone, to the last bit.

    Args:
        logits: of the next token; -inf forbids a token.
        sampling: the settings of all rows, or of each.
        seen_counts: how often each row has generated each token; None if nothing has been yet.

    Returns:
        Logits in float32, -inf where a token has been dropped.

    Raises:
        ValueError: there is not one setting per row, or a row has no largest finite logit, so that
            nothing can be chosen from it.
    """
    settings = _per_row(sampling, len(logits))
    scores = logits.float()
    if seen_counts is not None:
        scores = _on_rows(scores, settings, _penalize, lambda s: s.penalizes, seen_counts)
    largest = scores.amax(-1, keepdim=True)
    if not largest.isfinite().all():
        row = int((~largest.isfinite()).flatten().nonzero()[0])
        raise ValueError(
            f"the largest logit of row {row} is {largest[row].item()}; it must be finite: "
            "allow at least one token, and look for a model that diverged or overflowed"
        )
    for change, concerns in (
        (_heat, lambda s: s.temperature > 0),
        (_keep_most_likely, lambda s: s.temperature > 0 and (s.top_k or s.top_p < 1)),
        (_keep_near_best, lambda s: s.temperature > 0 and s.min_p),
    ):
        scores = _on_rows(scores, settings, change, concerns)
    return scores


def sample(
    logits: Float[Tensor, "B V"],
    sampling: Sampling | Sequence[Sampling],
    generators: Sequence[torch.Generator],
    seen_counts: Int[Tensor, "B V"] | None = None,
) -> Int[Tensor, " B"]:
    """Choose each row's next token.

    A row makes one draw from its own generator and nothing else, so what it draws does not depend
    on the rows beside it, the number of tokens, or the device.

    Args:
        logits: as the model gave them; see `adjust`.
        sampling: the settings of all rows, or of each.
        generators: one per row, as `row_generator` makes them; not used at temperature 0.
        seen_counts: see `adjust`.

    Raises:
        ValueError: there is not one generator per row, or `adjust` refuses the logits.
    """
    settings = _per_row(sampling, len(logits))
    scores = adjust(logits, settings, seen_counts)
    drawing = [row for row, s in enumerate(settings) if s.temperature > 0]
    if not drawing:
        return scores.argmax(-1)
    if len(generators) != len(scores):
        raise ValueError(
            f"{len(generators)} generators cannot serve {len(scores)} rows; give one per row"
        )
    if len(drawing) == len(scores):
        return _draw(scores, generators)
    tokens = scores.argmax(-1)
    tokens[drawing] = _draw(scores[drawing], [generators[row] for row in drawing])
    return tokens


def _draw(scores: Float[Tensor, "B V"], generators: Sequence[torch.Generator]) -> Tensor:
    draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    # Inverse of the cumulative distribution, in float64 so that a vocabulary of any size sums to 1
    # with no bias; `right` never lands on a token of probability 0.
    mass = scores.softmax(-1).double().cumsum(-1)
    heights = draws.to(mass.device) * mass[:, -1]
    return torch.searchsorted(mass, heights[:, None], right=True).squeeze(-1)


def _per_row(sampling: Sampling | Sequence[Sampling], rows: int) -> Sequence[Sampling]:
    settings = [sampling] * rows if isinstance(sampling, Sampling) else sampling
    if len(settings) != rows:
        raise ValueError(f"{len(settings)} settings cannot serve {rows} rows; give one per row")
    return settings


def _on_rows(
    scores: Float[Tensor, "B V"],
    settings: Sequence[Sampling],
    change: Callable[..., Tensor],
    concerns: Callable[[Sampling], object],
    *per_row: Tensor,
) -> Float[Tensor, "B V"]:
    """Change the rows that a setting concerns; the others keep their bits and cost nothing."""
    rows = [row for row, s in enumerate(settings) if concerns(s)]
    if not rows:
        return scores
    if len(rows) == len(scores):
        return change(scores, settings, *per_row)
    changed = change(scores[rows], [settings[i] for i in rows], *(x[rows] for x in per_row))
    at = torch.tensor(rows, device=scores.device)
    return scores.index_copy(0, at, changed)


def _column(values: Sequence[float], like: Tensor) -> Float[Tensor, "B 1"]:
    """One number for each row, in the dtype of the scores."""
    exact = torch.tensor(values, dtype=torch.float64)
    return exact.to(like.dtype)[:, None].to(like.device)


def _penalize(
    scores: Float[Tensor, "B V"], settings: Sequence[Sampling], seen_counts: Int[Tensor, "B V"]
) -> Float[Tensor, "B V"]:
    factor = _column([s.repetition_penalty for s in settings], scores)
    presence = _column([s.presence_penalty for s in settings], scores)
    frequency = _column([s.frequency_penalty for s in settings], scores)
    penalized = torch.where(scores > 0, scores / factor, scores * factor)
    penalized = penalized - presence - frequency * seen_counts
    return torch.where(seen_counts > 0, penalized, scores)


def _heat(scores: Float[Tensor, "B V"], settings: Sequence[Sampling]) -> Float[Tensor, "B V"]:
    """Largest at 0 before dividing, and never by 0: no temperature, however small, overflows."""
    smallest = torch.finfo(scores.dtype).tiny
    temperature = _column([max(s.temperature, smallest) for s in settings], scores)
    return (scores - scores.amax(-1, keepdim=True)) / temperature


def _keep_near_best(
    scores: Float[Tensor, "B V"], settings: Sequence[Sampling]
) -> Float[Tensor, "B V"]:
    floor = _column([math.log(s.min_p) for s in settings], scores)
    return scores.masked_fill(scores < floor, -math.inf)


def _keep_most_likely(
    scores: Float[Tensor, "B V"], settings: Sequence[Sampling]
) -> Float[Tensor, "B V"]:
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    V = scores.shape[-1]
    k = torch.tensor([s.top_k or V for s in settings], device=scores.device)[:, None]
    ordered = ordered.masked_fill(torch.arange(V, device=scores.device) >= k, -math.inf)
    probs = ordered.softmax(-1)
    mass_before = probs.cumsum(-1) - probs
    # A p of 1 drops nothing, whatever rounding makes of the sum. The first token's mass is 0
    # exactly, hence kept whatever p.
    p = _column([s.top_p if s.top_p < 1 else math.inf for s in settings], scores)
    ordered = ordered.masked_fill(mass_before >= p, -math.inf)
    return torch.full_like(scores, -math.inf).scatter(-1, ids, ordered)
