"""What training relies on: initialisation, residuals, dropout, embeddings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.small import FORMS, V, close, config, decoder, tokens
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import Retention, RetentionConfig
from retnet.model import PRESETS, Decoder, DecoderConfig, LayerConfig, preset
from retnet.model.decoder import Layer, branch_gain
from support import kept_bytes


def first_loss(described: DecoderConfig) -> float:
    """Mean over every token that might come next, so that none is drawn by luck."""
    torch.manual_seed(0)
    model = Decoder(described).eval()
    with torch.inference_mode():
        logits, _ = model(tokens(4, 64, described.vocab_size))
        return (logits.logsumexp(-1) - logits.mean(-1)).mean().item()


def shallow(described: DecoderConfig, num_layers: int = 3) -> DecoderConfig:
    (layer,) = described.layers
    return replace(described, layers=(replace(layer, repeat=num_layers),))


SIZES = ("small-1m", "small-4m", "small-16m", "small-50m", "paper-200m", "torchscale-base")


@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize("name", SIZES)
def test_first_loss_is_near_that_of_a_uniform_guess(name: str, tied: bool | None) -> None:
    """T16: others begin at thousands. Tied or not, over a range of widths."""
    described = shallow(preset(name, vocab_size=2000))
    if tied is not None:
        described = replace(described, tie_embeddings=tied)
    assert abs(first_loss(described) - math.log(2000)) <= 0.6


@pytest.mark.parametrize("residual", ["pre", "deepnorm"])
@pytest.mark.parametrize("embed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("tied", [True, False])
def test_first_loss_is_sound_with_every_embedding_and_residual(
    residual: str, embed: tuple[bool, bool], tied: bool
) -> None:
    """T16."""
    described = replace(
        shallow(preset("small-1m", vocab_size=2000), 6),
        residual=residual,  # type: ignore[arg-type]
        embed_scale=embed[0],
        embed_norm=embed[1],
        tie_embeddings=tied,
    )
    assert abs(first_loss(described) - math.log(2000)) <= 0.6


def test_every_preset_family_is_among_the_sizes_above() -> None:
    families = {name.partition("-")[0] for name in PRESETS}
    assert families == {name.partition("-")[0] for name in SIZES} | {"rwkv"}


def test_first_loss_of_rwkv_is_near_that_of_a_uniform_guess() -> None:
    """It has an initialisation of its own, which no tied head can have."""
    described = shallow(preset("rwkv-169m", vocab_size=2000))
    assert abs(first_loss(described) - math.log(2000)) <= 0.6


def test_one_step_of_descent_lowers_the_loss() -> None:
    model, text = Decoder(config()), tokens(4, 40)
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        logits, _ = model(text[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_two_draws_differ_and_a_seed_repeats_one() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(Decoder(config()).state_dict())
    for name in drawn[0]:
        assert torch.equal(drawn[0][name], drawn[1][name])
    assert any(not torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


@pytest.mark.parametrize("changes", [{"dropout": 0.4}, {"drop_path": 0.6}], ids=str)
def test_dropout_and_drop_path_act_in_training_only(changes: dict[str, float]) -> None:
    plain, model, text = decoder(), decoder(replace(config(), **changes)), tokens(8, 9)
    with torch.no_grad():
        close(model(text)[0], plain(text)[0])
        model.train()
        first, second = model(text)[0], model(text)[0]
        assert (first - second).abs().max() > 1e-3
        model.eval()
        close(model(text)[0], plain(text)[0])


def test_drop_path_skips_whole_rows_of_later_layers_and_enlarges_the_rest() -> None:
    """Stochastic depth: never the first layer, up to the given probability at the last."""
    described = replace(
        config(drop_path=0.5),
        layers=(LayerConfig(channel=GLUConfig(width=8), repeat=3),),
    )
    model = Decoder(described).double().train()
    assert [layer.drop_path for layer in model.layers] == [0, 0.25, 0.5]
    layer = model.layers[2]
    assert isinstance(layer, Layer)
    y = torch.ones(4000, 2, 3, dtype=torch.float64)
    torch.manual_seed(0)
    dropped = layer._drop_path(y)
    rows = dropped.flatten(1)
    assert (rows == rows[:, :1]).all()
    assert set(rows[:, 0].tolist()) == {0.0, 2.0}
    assert rows[:, 0].mean().item() == pytest.approx(1, abs=0.05)


def test_dropout_reaches_embeddings_and_each_branch() -> None:
    described = config(dropout=0.5)
    model = decoder(described).train()
    calls: list[float] = []
    original = F.dropout

    def counted(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        calls.append(p)
        assert training
        return original(x, p, training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "dropout", counted)
        model(tokens(1, 3))
    assert calls == [0.5] * (1 + 2 * described.num_layers)


def test_deepnorm_norms_after_each_sum_and_not_before_the_head() -> None:
    """T15: norm(alpha x + branch(x)), alpha = (2 L)^(1/4)."""
    described = config(residual="deepnorm")
    model, text = decoder(described), tokens(2, 7)
    alpha = (2 * described.num_layers) ** 0.25
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in model.modules():
        if isinstance(module, Layer):
            for branch in module.branches:
                branch.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    with torch.no_grad():
        h, _ = model.hidden(text)
    x = model.embed_tokens(text)
    norms = [norm for layer in model.layers for norm in layer.norms]  # type: ignore[union-attr]
    for (given, y), norm in zip(seen, norms, strict=True):
        close(given, x)
        x = F.rms_norm(alpha * x + y, (16,), norm.weight, 1e-6)  # type: ignore[arg-type]
    close(h, x)
    assert isinstance(model.norm, nn.Identity)


def test_pre_norm_adds_each_branch_of_the_normed_stream() -> None:
    described = config(norm="layer", norm_eps=1e-2)
    model, text = decoder(described), tokens(2, 7)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in model.layers:
        for branch in layer.branches:  # type: ignore[union-attr]
            branch.register_forward_hook(lambda _, args, out: seen.append((args[0], out[0])))
    with torch.no_grad():
        h, _ = model.hidden(text)
    x = model.embed_tokens(text)
    norms = [norm for layer in model.layers for norm in layer.norms]  # type: ignore[union-attr]
    for (given, y), norm in zip(seen, norms, strict=True):
        close(given, F.layer_norm(x, (16,), norm.weight, norm.bias, 1e-2))  # type: ignore[arg-type]
        x = x + y
    close(h, F.layer_norm(x, (16,), model.norm.weight, model.norm.bias, 1e-2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "gain"),
    [
        ({}, 1.0),
        ({"init": "subln"}, math.sqrt(math.log(12))),
        ({"residual": "deepnorm"}, 48**-0.25),
        ({"residual": "deepnorm", "init": "subln"}, 48**-0.25),
    ],
    ids=str,
)
def test_init_scales_the_weights_that_set_the_size_of_a_branch(
    changes: dict[str, str], gain: float
) -> None:
    """subln: sqrt(ln 2L); deepnorm: (8 L)^(-1/4); on v, o and the channel mixer only."""
    described = DecoderConfig(
        d_model=32,
        layers=(
            LayerConfig(mixer=RetentionConfig(num_heads=2), channel=GLUConfig(width=32), repeat=6),
        ),
        vocab_size=V,
    )
    assert branch_gain(replace(described, **changes)) == pytest.approx(gain)  # type: ignore[arg-type]
    largest = []
    for which in (described, replace(described, **changes)):  # type: ignore[arg-type]
        torch.manual_seed(0)
        weights = Decoder(which).state_dict()
        largest.append({name: w.abs().max().item() for name, w in weights.items()})
    for name in largest[0]:
        scaled = any(part in name for part in ("v_proj", "o_proj", "up_proj", "down_proj"))
        ratio = largest[1][name] / largest[0][name] if name in largest[1] else 1.0
        assert ratio == pytest.approx(gain if scaled else 1.0, rel=0.1), name


def test_embed_scale_multiplies_by_the_root_of_the_width_before_the_norm() -> None:
    text = tokens(2, 5)
    plain, scaled = (decoder(config(embed_scale=flag)) for flag in (False, True))
    with torch.no_grad():
        scaled.embed_tokens.weight.div_(4.0)  # sqrt(16)
        close(scaled(text)[0], plain(text)[0])
        normed = decoder(config(embed_norm=True, embed_scale=True))
        seen: list[torch.Tensor] = []
        normed.embed_norm.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))  # type: ignore[arg-type]
        normed(text)
    close(seen[0], 4 * normed.embed_tokens(text))
    close(seen[1].square().mean(-1), (normed.embed_norm.weight**2).mean().expand(2, 5), 1.0)  # type: ignore[operator]


def test_a_tied_head_is_the_embedding_and_learns_with_it() -> None:
    model = decoder(config(tie_embeddings=True))
    assert model.lm_head.weight is model.embed_tokens.weight
    text = tokens(2, 9)
    logits, _ = model(text)
    logits.sum().backward()
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    close(model.head(torch.eye(16, dtype=torch.float64)), model.embed_tokens.weight.T)


def test_parameters_are_counted_once_and_without_embeddings_if_asked() -> None:
    tied, untied = Decoder(config(tie_embeddings=True)), Decoder(config())
    assert untied.num_parameters() == sum(p.numel() for p in untied.parameters())
    assert tied.num_parameters() == untied.num_parameters() - V * 16
    assert tied.num_parameters(embeddings=False) == untied.num_parameters(embeddings=False)
    assert untied.num_parameters(embeddings=False) == untied.num_parameters() - 2 * V * 16


def test_a_layer_may_have_one_branch_and_layers_may_differ() -> None:
    mixer = RetentionConfig(num_heads=2)
    other = RetentionConfig(num_heads=4, decay="linspace", value_width=16)
    described = replace(
        config(),
        layers=(
            LayerConfig(mixer=mixer),
            LayerConfig(channel=GLUConfig(width=8)),
            LayerConfig(mixer=other, channel=GLUConfig(width=8), repeat=2),
        ),
    )
    model, text = decoder(described), tokens(2, 20)
    assert described.num_layers == len(model.layers) == 4
    with torch.no_grad():
        want, end = model(text, form="recurrent")
        for form in FORMS:
            first, state = model(text[:, :7], form=form)
            second, _ = model(text[:, 7:], state, form=form)
            close(torch.cat([first, second], 1), want)
    assert [len(layer) for layer in end.layers] == [1, 1, 2, 2]
    assert sum(isinstance(m, Retention) for m in model.modules()) == 3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(dropout: float) -> None:
    found = []
    for checkpointing in (False, True):
        model = decoder(config(dropout=dropout)).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        starts = torch.zeros(2, 40, dtype=torch.bool)
        starts[:, 17] = True
        logits, state = model(tokens(2, 40), starts=starts)
        (logits.square().mean() + state.layers[1][0].S.sum()).backward()
        found.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.equal(plain, recomputed)


def test_gradient_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        model = decoder().train()
        model.gradient_checkpointing = checkpointing
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes = kept_bytes(lambda model=model: model(tokens(2, 64)))
        kept.append(sum(size for address, size in sizes.items() if address not in weights))
    assert kept[1] < kept[0] / 4
