"""The best small model that little time can train: RetNet as it is and improved, beside rivals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from retnet.bench.picture import GREY
from retnet.bench.table import Table
from retnet.model import DecoderConfig, rival
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import AT_EDGE, COLORS, gap_of, tuning_remarks
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.measures import DOCUMENTS, WINDOWS, WholeText
from retnet.reproduce.scales import Scale
from retnet.reproduce.sweep import Entrant, Runs, runs, sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RETNET, TRANSFORMER, RWKV = "RetNet", "Transformer", "RWKV"
RWKV_IMPROVED = "RWKV, improved likewise"
NEAR = "RetNet, near heads"
SHIFTED = "RetNet, near heads, token shift"
IMPROVED = "RetNet, improved"
HYBRID = "RetNet, improved, one layer of attention"
CARRIED = "RetNet, improved, state carried"
MEANS = "RetNet, improved, means"
OURS = (RETNET, NEAR, SHIFTED, IMPROVED, HYBRID, CARRIED, MEANS)

MORE_HEADS = 2
"""Times as many heads, each as much smaller."""

NEAR_DECAY = "linspace:2:512"
"""Heads that remember from 2 tokens to 512; the shortest memory of the paper's is 32."""

LONGER = 6
"""Times as many tokens as other experiments of the scale read."""

WIDER = 2
"""Times as wide models, in windows as much longer."""

SAME_BITS = 0.0025
"""Smaller differences are none: about SAME_NATS per token of three bytes."""

TEST, VALIDATION = "test", "validation"


class Quality:
    """See the module."""

    name = "quality"
    title = "Quality: the best small model"
    about = (
        "Models of equal size read the same text as often, each with the better of two learning "
        "rates: RetNet as the paper has it, its rivals, and RetNets improved one thing after the "
        "other. Near heads: more of them, some of which remember a few tokens only, and no norm of "
        "each. Token shift: what retention reads is mixed with the token before. Improved: what "
        "the channel mixer reads, too; that one is wider, and values are as narrow as keys; "
        "embeddings are normed. One layer of attention: the last. State carried: in training, from "
        "window to window, so that a step's windows are those that follow the step's before. "
        "Means: what a head reads is a mean of values, weighted by exponentials of queries and "
        "keys, and these, values and gate each have a token shift of their own. "
        "Held-out text is read to its end in two ways: in windows as long as those of training, "
        "which overlap by half, and each document from its first token to its last without "
        "forgetting. RWKV has its own channel mixer here; improved likewise, it has that of the "
        "improved RetNet, and normed embeddings."
    )
    reads_texts = True

    def sized(self, scale: Scale) -> Scale:
        """Wider models, longer windows, more tokens; the held-out text of the domain alone."""
        train = scale.train
        steps = LONGER * train.steps
        return replace(
            scale,
            about="four times the parameters and six times the tokens of its other experiments",
            model=resized(scale.model, WIDER, 1, 1, 1),
            train=replace(
                train,
                steps=steps,
                seq_len=WIDER * train.seq_len,
                batch_size=max(train.batch_size // WIDER, 1),
                precision="bfloat16",
                warmup_steps=max(steps // 50, 1),
                save_every=max(steps // 20, 1),
                log_every=max(steps // 100, 1),
            ),
            rates=_lower(scale.rates[len(scale.rates) // 2]),
            amounts=replace(
                scale.amounts, held_out=True, test_tokens=LONGER * scale.amounts.test_tokens
            ),
        )

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Each model."""
        assert setup.texts is not None
        seq_len = setup.scale.train.seq_len
        measures = tuple(WholeText(text=text, seq_len=seq_len) for text in setup.texts.tests)
        return sweep(setup, _entrants(setup.scale.model), measures, done)

    def report(self, results: Sequence[Result]) -> Report:
        """Bits per byte and perplexity per word, and whether a RetNet beats both rivals."""
        found = runs(results)
        return Report(
            ours=[_table(found, results)],
            papers=[],
            claims=_claims(found),
            remarks=[
                "The claims compare models as they read best, by the validation text: one with "
                "attention in windows, say, and one with a state without forgetting.",
                *tuning_remarks(found, {}, results),
            ],
            draw=lambda figure: _draw(figure, found),
        )


def near_heads(base: DecoderConfig) -> DecoderConfig:
    """RetNet with more heads, some of which remember a few tokens only, and no norm of each."""
    [layer] = base.layers
    mixer: Any = layer.mixer
    near = replace(
        mixer, num_heads=MORE_HEADS * mixer.num_heads, decay=NEAR_DECAY, head_norm="none"
    )
    return replace(base, layers=(replace(layer, mixer=near),))


def token_shift(base: DecoderConfig) -> DecoderConfig:
    """The same, and retention also sees the token before."""
    [layer] = near_heads(base).layers
    return rival(base, "shifted_retention", retention=layer.mixer)


def improved(base: DecoderConfig) -> DecoderConfig:
    """The same, and so does the channel mixer, wider as values are narrower; embeddings normed."""
    [layer] = near_heads(base).layers
    mixer: Any = layer.mixer
    narrow = replace(mixer, value_width=base.d_model)
    model = rival(base, "shifted_retention", channel="shifted_glu", retention=narrow)
    return replace(model, embed_norm=True)


def means(base: DecoderConfig) -> DecoderConfig:
    """The same, and what a head reads is a mean of values, with weights as RWKV has them."""
    [layer] = near_heads(base).layers
    near: Any = layer.mixer
    fields = {"num_heads": near.num_heads, "decay": near.decay}
    model = rival(base, "mean_retention", channel="shifted_glu", **fields)
    return replace(model, embed_norm=True)


def rwkv_improved(base: DecoderConfig) -> DecoderConfig:
    """RWKV's time mixing with all that the improved RetNet has besides retention."""
    return replace(rival(base, "rwkv", channel="shifted_glu"), embed_norm=True)


def hybrid(base: DecoderConfig) -> DecoderConfig:
    """The same, and the last layer has attention instead."""
    model = improved(base)
    [layer] = model.layers
    [last] = rival(base, "attention", channel="shifted_glu").layers
    first = replace(layer, repeat=layer.repeat - 1)
    return replace(model, layers=(first, replace(last, repeat=1)))


def _lower(rate: float) -> tuple[float, float]:
    """Rates to try: longer runs of larger models want lower ones."""
    return round(rate * 2 / 3, 6), rate


@cache
def _entrants(base: DecoderConfig) -> dict[str, Entrant]:
    rwkv = rival(base, "rwkv", channel="rwkv_ffn")  # as its authors have it
    return {
        RETNET: Entrant(config=base),
        TRANSFORMER: Entrant(config=rival(base, "attention")),
        RWKV: Entrant(config=rwkv),
        IMPROVED: Entrant(config=improved(base)),
        HYBRID: Entrant(config=hybrid(base)),
        MEANS: Entrant(config=means(base)),
        RWKV_IMPROVED: Entrant(config=rwkv_improved(base)),
        CARRIED: Entrant(config=improved(base), carry_state=True),
        SHIFTED: Entrant(config=token_shift(base)),
        NEAR: Entrant(config=near_heads(base)),
    }


def best_way(run: Runs) -> str:
    """How a model reads the validation text best, by the mean over seeds."""
    return min((WINDOWS, DOCUMENTS), key=lambda way: _mean(run, f"bits {VALIDATION} {way}"))


def _mean(run: Runs, metric: str) -> float:
    return estimate([*run.values(metric).values()]).mean


def _best_first(found: Mapping[str, Runs]) -> list[str]:
    return sorted(
        found, key=lambda name: _mean(found[name], f"bits {TEST} {best_way(found[name])}")
    )


def _table(found: Mapping[str, Runs], results: Sequence[Result]) -> Table:
    rows = []
    for name in _best_first(found):
        run = found[name]
        way = best_way(run)

        def text(metric: str, run: Runs = run) -> str:
            return estimate([*run.values(metric).values()]).text(3)

        words = [math.exp(nats) for nats in run.values(f"word {TEST} {way}").values()]
        minutes = estimate([value / 60 for value in run.values("seconds").values()])
        settings = next(iter(run.results.values())).settings
        rows.append(
            (
                name,
                text(f"bits {VALIDATION} {way}"),
                text(f"bits {TEST} {WINDOWS}"),
                text(f"bits {TEST} {DOCUMENTS}"),
                estimate(words).text(1),
                run.rate_text,
                f"{len(run.results)}",
                f"{minutes.mean:.0f}",
                f"{settings['parameters'] / 1e6:.2f}",
            )
        )
    last = results[-1].settings
    train = last["train"]
    tokens = train["steps"] * train["batch_size"] * train["seq_len"]
    held_out = ", ".join(
        f"{m['name']} ({m['documents']} documents, {m['tokens']:,} tokens, {m['words']:,} words)"
        for m in last["measures"]
    )
    return Table(
        title="Bits per byte of held-out text, and perplexity per word",
        columns=(
            "model",
            VALIDATION,
            f"{TEST} {WINDOWS}",
            f"{TEST} {DOCUMENTS}",
            "per word",
            "learning rate",
            "seeds",
            "minutes of training",
            "M parameters",
        ),
        rows=rows,
        caption=(
            f"Trained for {tokens:,} tokens in windows of {train['seq_len']}, products in "
            f"{train['precision']}. Held out: {held_out}. "
            "Validation and words are read in the way that suits the model better. Words are what "
            "blanks separate, and each end of a line is one more. Parameters without embeddings. "
            "Mean over seeds ± its standard error."
            + (f" {AT_EDGE}" if any(run.at_edge for run in found.values()) else "")
        ),
    )


def _claims(found: Mapping[str, Runs]) -> list[Claim]:
    """That each RetNet beats each rival on the test text, and the best one RWKV improved."""

    def bits(name: str) -> Mapping[int, float] | None:
        run = found.get(name)
        return None if run is None else run.values(f"bits {TEST} {best_way(run)}")

    return [
        Claim(
            says=f"{ours} predicts better than {{}}",
            name=theirs,
            gap=gap_of(bits(theirs), bits(ours)),
            unit="bits per byte",
            least=SAME_BITS,
        )
        for ours in OURS
        for theirs in (TRANSFORMER, RWKV, *((RWKV_IMPROVED,) if ours == MEANS else ()))
    ]


def _draw(figure: "Figure", found: Mapping[str, Runs]) -> None:
    """Bits per byte of the test text, by both ways of reading."""
    axes = figure.subplots()
    upwards = [*reversed(_best_first(found))]
    for number, way in enumerate((WINDOWS, DOCUMENTS)):
        for place, name in enumerate(upwards):
            values = [*found[name].values(f"bits {TEST} {way}").values()]
            mean, height = estimate(values), place + 0.12 * (1 - 2 * number)
            axes.errorbar(
                mean.mean,
                height,
                xerr=mean.error or 0.0,
                fmt="os"[number],
                color=COLORS[number],
                capsize=3,
                label=way if not place else None,
            )
            heights = [height] * len(values)
            axes.plot(values, heights, ".", color=GREY, markersize=3, zorder=0)
    axes.set_yticks(range(len(upwards)), upwards)
    axes.set_xlabel("bits per byte of the test text")
    axes.grid(axis="x", color=GREY, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="read")
