from typing import Any, cast

import torch

from retnet.hub import from_dict
from retnet.model import Decoder, DecoderConfig
from retnet.train import TrainSection
from retnet.train.optimizer import (
    build_optimizer,
    decayed_parameters,
    learning_rate_factors,
    optimizer_tensors,
)


def make_model(tie_embeddings=False):
    layer = {
        "mixer": {"name": "retention", "num_heads": 2, "bias": True, "head_norm_affine": True},
        "channel": {"name": "ffn", "width": 24, "inner_norm": True},
    }
    config = {
        "d_model": 16,
        "vocab_size": 11,
        "layers": [layer],
        "norm": "layer",
        "tie_embeddings": tie_embeddings,
    }
    torch.manual_seed(0)
    return Decoder(from_dict(DecoderConfig, config))


def step(model, optimizer):
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_weight_decay_is_for_matrices_only():
    model = make_model()
    decayed = decayed_parameters(model)
    assert "lm_head.weight" in decayed
    assert "layers.0.branches.0.q_proj.weight" in decayed
    assert "layers.0.branches.1.down_proj.weight" in decayed
    rest = {name for name, _ in model.named_parameters()} - decayed
    assert "embed_tokens.weight" in rest
    assert all("bias" in name or "norm" in name for name in rest if name != "embed_tokens.weight")


def test_a_head_tied_to_the_embedding_is_not_decayed():
    assert not {"lm_head.weight", "embed_tokens.weight"} & decayed_parameters(make_model(True))


def test_groups_hold_every_parameter_once():
    model = make_model(tie_embeddings=True)
    groups = build_optimizer(model, TrainSection(steps=1, weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_decay_pulls_decayed_weights_and_no_others():
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainSection(steps=1, learning_rate=0.5, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = decayed_parameters(model)
    for name, parameter in model.named_parameters():
        factor = 0.75 if name in decayed else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_state_copied_into_another_optimizer_continues_bit_for_bit():
    section = TrainSection(steps=9)
    model, twin = make_model(), make_model()
    optimizer, twin_optimizer = build_optimizer(model, section), build_optimizer(twin, section)
    step(model, optimizer)
    tensors, others = (
        optimizer_tensors(dict(m.named_parameters()), o)
        for m, o in ((model, optimizer), (twin, twin_optimizer))
    )
    assert {name.partition("/")[0] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(tensors) == 3 * len(list(model.parameters()))
    twin.load_state_dict(model.state_dict())
    for name, tensor in tensors.items():
        others[name].copy_(tensor)
    step(model, optimizer)
    step(twin, twin_optimizer)
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_averages_that_start_at_zero_are_those_of_adamw():
    model, plain = make_model(), make_model()
    section = TrainSection(steps=9, weight_decay=0.0)
    ours = build_optimizer(model, section)
    theirs = torch.optim.AdamW(
        plain.parameters(), lr=section.learning_rate, betas=section.betas, weight_decay=0.0
    )
    for _ in range(2):
        step(model, ours)
        step(plain, theirs)
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_what_does_not_learn_is_left_out():
    model = make_model()
    model.embed_tokens.weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainSection(steps=1))
    names = optimizer_tensors(dict(model.named_parameters()), optimizer)
    assert "exp_avg/embed_tokens.weight" not in names


def test_what_learns_at_a_pace_of_its_own_is_a_group_that_does_not_decay():
    model = make_model()
    mixer: Any = cast(Any, model.layers[0]).branches[0]
    mixer.learning_rates = {"head_norm_weight": 3.0}
    mixer.q_proj.learning_rates = {"weight": 3.0}
    names = {"layers.0.branches.0.head_norm_weight", "layers.0.branches.0.q_proj.weight"}
    assert learning_rate_factors(model) == dict.fromkeys(names, 3.0)
    groups = build_optimizer(model, TrainSection(steps=1, weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], g["lr_factor"]) for g in groups] == [(0.3, 1), (0.0, 1), (0.0, 3)]
    parameters = dict(model.named_parameters())
    assert {id(p) for p in groups[2]["params"]} == {id(parameters[name]) for name in names}
