"""Checks of a decoder whose rows are spread over ranks; `test_sequence_ranks.py` runs them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixers.cases import TOKEN_CASES, D, build
from model.small import close, config, decoder, leaves, same_states, tokens
from retnet.mixers.retention import RetentionState
from retnet.model import Decoder, DecoderState
from retnet.model.scoring import score
from retnet.ops import Layout, SequenceRanks
from retnet.types import FormChoice
from support import assert_within_budget

FORMS: tuple[FormChoice, ...] = ("parallel", "recurrent", "chunkwise", "auto")
B, T = 2, 22
TEXT = tokens(B, T)
WEIGHTS = torch.randn(B, T, 31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

Run = Callable[[Decoder, SequenceRanks | None], tuple[Tensor, DecoderState]]


def part(whole: Tensor, ranks: SequenceRanks | None) -> Tensor:
    return whole if ranks is None else ranks.part(whole)


def summed(share: Tensor) -> Tensor:
    total = share.clone()
    dist.all_reduce(total)
    return total


def gradients(model: Decoder) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def documents() -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Starts and padding: none, starts inside slices and at their borders, padding, both."""
    starts = torch.zeros(B, T, dtype=torch.bool)
    starts[0, [0, 7, 11]] = True  # on 2 ranks, 11 is a border
    starts[1, [5, 16]] = True  # on 4 ranks, 5 and 16 are
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[0, 3:9] = False
    valid[1, :12] = False  # the first slices hold nothing else
    yield None, None
    yield starts, None
    yield None, valid
    yield starts, valid


def assert_same_on_all_ranks_together(run: Run, model: Decoder) -> None:
    """Logits, the state and every parameter's gradient, as of one process with whole rows."""
    ranks = SequenceRanks.of()
    want, want_state = run(model, None)
    weights = WEIGHTS[:, -want.shape[1] :]
    (want * weights).sum().backward()
    want_gradients = gradients(model)
    got, state = run(model, ranks)
    (got * ranks.part(weights)).sum().backward()
    close(got.detach(), ranks.part(want.detach()), 1e-12)
    same_states(state, want_state, 1e-12)
    for leaf in leaves(state):
        assert torch.equal(summed(leaf.detach()), ranks.size * leaf.detach())
    for (name, gradient), share in zip(
        want_gradients.items(), gradients(model).values(), strict=True
    ):
        assert gradient.abs().max() > 0, name
        close(summed(share), gradient, 1e-12)


def logits_states_and_gradients_are_those_of_one_process() -> None:
    for form, (starts, valid) in zip(FORMS, documents(), strict=True):

        def run(
            model: Decoder,
            ranks: SequenceRanks | None,
            form: FormChoice = form,
            starts: Tensor | None = starts,
            valid: Tensor | None = valid,
        ) -> tuple[Tensor, DecoderState]:
            begins, real = (None if mask is None else part(mask, ranks) for mask in (starts, valid))
            text = part(TEXT, ranks)
            return model(text, starts=begins, valid=real, form=form, sequence=ranks)

        assert_same_on_all_ranks_together(run, decoder())


def calls_that_carry_the_state_are_those_of_one_process() -> None:
    """The state after whole rows goes into the next call of every rank, gradient and all."""
    for cut in (9, 14):

        def run(
            model: Decoder, ranks: SequenceRanks | None, cut: int = cut
        ) -> tuple[Tensor, DecoderState]:
            _, between = model(part(TEXT[:, :cut], ranks), sequence=ranks)
            return model(part(TEXT[:, cut:], ranks), between, sequence=ranks)

        assert_same_on_all_ranks_together(run, decoder())
        ranks, model = SequenceRanks.of(), decoder()
        whole, last = model(TEXT)
        logits, state = run(model, ranks)
        close(logits, ranks.part(whole[:, cut:]), 1e-12)
        same_states(state, last, 1e-12)


def layers_that_are_computed_anew_in_the_backward_pass_change_nothing() -> None:
    ranks, model = SequenceRanks.of(), decoder().train()
    (model(TEXT)[0] * WEIGHTS).sum().backward()
    want = gradients(model)
    model.gradient_checkpointing = True
    logits, _ = model(ranks.part(TEXT), sequence=ranks)
    (logits * ranks.part(WEIGHTS)).sum().backward()
    for share, gradient in zip(gradients(model).values(), want.values(), strict=True):
        close(summed(share), gradient, 1e-12)


def scores_of_the_slices_add_up() -> None:
    ranks, model = SequenceRanks.of(), decoder()
    targets = tokens(B, T, seed=2)
    targets[0, : T // 2] = -100  # on 2 ranks a whole slice of the row
    want = score(model, TEXT, targets)
    got = score(model, ranks.part(TEXT), ranks.part(targets), sequence=ranks)
    assert summed(got.num_tokens) == want.num_tokens
    torch.testing.assert_close(summed(got.nats), want.nats)
    same_states(got.state, want.state, 1e-12)


def half_precision_is_within_the_budget_of_one_process() -> None:
    ranks, text = SequenceRanks.of(), tokens(B, 100)
    exact, _ = decoder()(text)
    model = decoder(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = model(text)
        got, state = model(ranks.part(text), sequence=ranks)
    assert state.layers[0][0].S.dtype == torch.float32
    parts = [torch.zeros_like(plain), plain, exact]
    ranks.part(parts[0]).copy_(got)
    assert_within_budget(summed(parts[0]).detach(), plain.detach(), exact.detach())


def every_mixer_that_says_so_spans_ranks() -> None:
    ranks = SequenceRanks.of()
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for name, fields in TOKEN_CASES.items():
        for given in fields:
            branch = build(name, given)
            if not getattr(branch, "spans_ranks", False):
                continue
            starts = next(s for s, _ in documents() if s is not None)
            want, want_state = branch(x, None, Layout.of(B, T, starts=starts), "auto")
            mine = ranks.part(x)
            layout = Layout.of(*mine.shape[:2], starts=ranks.part(starts), sequence=ranks)
            got, state = branch(mine, None, layout, "auto")
            close(got, ranks.part(want), 1e-12)
            for a, b in zip(state, want_state, strict=True):
                close(a, b, 1e-12)


class Unaware(nn.Module):
    """A branch with a state that knows nothing of ranks."""

    def forward(self, x: Tensor, *_: object) -> tuple[Tensor, RetentionState]:
        return x, RetentionState(x.new_zeros(len(x), 1, 1, 1))


def what_cannot_be_spread_is_refused() -> None:
    ranks = SequenceRanks.of()
    model = decoder()
    model.layers[0].branches[0] = Unaware()  # type: ignore[index]
    model(TEXT)
    with pytest.raises(ValueError, match=r"Unaware has a state .* \(train.sequence_ranks = 1\)"):
        model(ranks.part(TEXT), sequence=ranks)
    model = decoder(config({"score_norm": "torchscale"}))
    model(TEXT)
    with pytest.raises(ValueError, match=r'"torchscale" needs every score.*score_norm = "scaled"'):
        model(ranks.part(TEXT), sequence=ranks)
    forgetful = decoder(replace(config(), layers=config().layers[:1]))
    forgetful.layers[0].branches[0] = nn.Module()  # type: ignore[index]
    forgetful.layers[0].branches[0].forward = lambda x, *_: (x, None)  # type: ignore[index]
    forgetful(ranks.part(TEXT), sequence=ranks)


CHECKS = (
    logits_states_and_gradients_are_those_of_one_process,
    calls_that_carry_the_state_are_those_of_one_process,
    layers_that_are_computed_anew_in_the_backward_pass_change_nothing,
    scores_of_the_slices_add_up,
    half_precision_is_within_the_budget_of_one_process,
    every_mixer_that_says_so_spans_ranks,
    what_cannot_be_spread_is_refused,
)
