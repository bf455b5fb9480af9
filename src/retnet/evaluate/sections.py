"""What was found out, as tables and sentences: for the screen and for reports alike."""

import math
from typing import NamedTuple

from retnet.evaluate.context import ContextGrowth
from retnet.evaluate.evaluation import BesideRow, Evaluation
from retnet.evaluate.losses import Interval
from retnet.evaluate.memory import format_bytes
from retnet.evaluate.tasks import TaskScore, mean_accuracy

Row = tuple[str, ...]

VERDICTS = {
    "improves": "It improves: the same tokens are predicted better when more came before",
    "flat": "It is flat: more context changes nothing that can be told from chance",
    "breaks": "It breaks: the longest context is worse than a shorter one",
}


KINDS = {
    "new": "new in the passage",
    "seen": "seen before, after other tokens",
    "pair": "seen before, after the same token",
}


class Section(NamedTuple):
    """One table.

    Attributes:
        key: a short name; pictures go by it.
        title: its heading.
        columns: heads of the table.
        rows: as many cells in each.
        notes: sentences on what it says and how it was measured.
    """

    key: str
    title: str
    columns: Row
    rows: list[Row]
    notes: list[str]


def sections(evaluation: Evaluation) -> list[Section]:
    """A section for each part that was asked for."""
    makers = (_text, _contexts, _repeats, _familiar, _needles, _heads, _probes, _tasks)
    return [section for maker in makers if (section := maker(evaluation)) is not None]


def about(evaluation: Evaluation) -> str:
    """The model in a sentence."""
    size = format_bytes(evaluation.state_bytes)
    keeps = (
        f"{size} after the first token of a text, and more with every token"
        if evaluation.state_grows
        else f"{size} of a text, however long it is"
    )
    return f"{evaluation.parameters:,} parameters; it keeps {keeps}."


def _text(evaluation: Evaluation) -> Section | None:
    if not evaluation.text:
        return None
    words = evaluation.text[0].word_perplexity is not None
    columns = ("memory", "perplexity per token", "bits per byte", "tokens", "bytes")
    rows = []
    for row in evaluation.text:
        score = row.score
        cells = [row.memory, f"{score.perplexity:.2f}"]
        if row.word_perplexity is not None:
            cells.append(f"{row.word_perplexity:.2f}")
        cells += [f"{score.bits_per_byte:.4f}", f"{score.num_tokens:,}", f"{score.num_bytes:,}"]
        rows.append(tuple(cells))
    notes = []
    if words:
        columns = (*columns[:2], "per word", *columns[2:])
        notes.append(
            "Per word: words are what blanks separate, and each end of a line is one more, as "
            "WikiText counts them; the bits of all tokens are spread over them."
        )
    return Section("text", "How well it predicts the text", columns, rows, notes)


def _contexts(evaluation: Evaluation) -> Section | None:
    growth = evaluation.contexts
    if growth is None:
        return None
    rows = [
        (f"{context:,}", f"{math.exp(nats):.3f}", f"{nats:.4f}", _signed(gain))
        for context, nats, gain in zip(growth.contexts, growth.nats, growth.gains, strict=True)
    ]
    columns = ("tokens read", "perplexity", "nats", "against the shortest")
    return Section(
        "contexts", "Does more context help?", columns, rows, [_verdict(growth), _how(growth)]
    )


def _verdict(growth: ContextGrowth) -> str:
    best = _signed(growth.after_best)
    return (
        f"{VERDICTS[growth.verdict]} ({_signed(growth.gains[-1])} nats from "
        f"{growth.contexts[0]:,} to {growth.contexts[-1]:,} tokens; {best} against the best of "
        "the shorter ones)."
    )


def _how(growth: ContextGrowth) -> str:
    return (
        f"The last {growth.segment} tokens of {growth.samples} samples, each predicted from a BOS "
        "and what stands before; brackets hold intervals of 95 % of the paired differences."
    )


def _repeats(evaluation: Evaluation) -> Section | None:
    if not evaluation.repeats:
        return None
    rows = [
        (f"{r.length:,}", _share(r.first), _share(r.again), _share(r.plain), f"{r.samples}")
        for r in evaluation.repeats
    ]
    columns = ("tokens", "first time", "second time", "plain text there", "passages")
    note = (
        "Share of tokens that are the likeliest, in a passage, in the same passage right after "
        "it, and in the text that really follows."
    )
    return Section("repeats", "A passage that comes twice", columns, rows, [note])


def _familiar(evaluation: Evaluation) -> Section | None:
    scores = evaluation.familiar
    if not scores:
        return None
    rows = [
        (
            KINDS[score.kind],
            f"{score.share:.1%}",
            f"{math.exp(score.nats):,.2f}",
            f"{score.nats:.3f} ± {score.standard_error:.3f}",
        )
        for score in scores
    ]
    columns = ("token", "share", "perplexity", "nats")
    note = (
        f"Of {scores[0].samples} passages of {scores[0].length:,} tokens, each read from its "
        "beginning. What is new must be guessed from the weights; what came before, above all "
        "after the same token as now, can be looked up. ±: standard error, by passages."
    )
    return Section("familiar", "Tokens that come again", columns, rows, [note])


def _needles(evaluation: Evaluation) -> Section | None:
    if not evaluation.needles:
        return None
    rows = [
        (f"{n.depth:.0%}", f"{n.distance:,}", _share(n.right), _signed(n.gain), f"{n.samples}")
        for n in evaluation.needles
    ]
    columns = ("depth", "tokens since", "chosen of ten", "nats gained", "texts")
    note = (
        "A number of five digits is told at some depth of a text and asked for at its end: how "
        "often it is the likeliest of ten (chance: 10 %), and by how many nats it became likelier."
    )
    return Section("needles", "A number hidden in a text", columns, rows, [note])


def _heads(evaluation: Evaluation) -> Section | None:
    if not evaluation.heads:
        return None
    rows = []
    longest = 2 ** (len(evaluation.heads[0].influence) - 1)
    for memory in evaluation.heads:
        tokens = memory.decay_tokens
        rows.append(
            (
                f"{memory.layer}.{memory.branch}",
                "all" if memory.head is None else f"{memory.head}",
                "none" if memory.decay is None else f"{memory.decay:.5f}",
                "" if tokens is None else "no end" if math.isinf(tokens) else f"{tokens:,.0f}",
                f"over {longest:,}" if memory.reach is None else f"{memory.reach:,}",
                f"{max(memory.influence):.1e}",
            )
        )
    columns = ("layer", "head", "decay", "1 / (1 - decay)", "matters for", "nats at most")
    note = (
        "A head's part of the state is exchanged for that of another text. The predictions then "
        "differ (Kullback-Leibler divergence); tokens after which less than a tenth of the largest "
        "difference is left, beside those after which its decay leaves 1/e."
    )
    return Section("heads", "How long each head's memory matters", columns, rows, [note])


def _probes(evaluation: Evaluation) -> Section | None:
    if not evaluation.probes:
        return None
    rows = [
        (
            row.name,
            f"{row.length:,}",
            f"{row.score.accuracy:.1%} ± {row.score.standard_error:.1%}",
            f"{row.score.exact:.1%}",
            f"{row.chance:.1%}",
        )
        for row in evaluation.probes
    ]
    columns = ("probe", "tokens", "right", "whole rows", "chance")
    note = "Mean and standard error over new examples; the model is taken to be trained on them."
    return Section("probes", "Probes", columns, rows, [note])


def _tasks(evaluation: Evaluation) -> Section | None:
    scores = evaluation.tasks
    if not scores:
        return None
    rows = []
    for score in scores:
        percent = score.chance is not None
        rows.append(
            (
                score.task,
                score.metric,
                _score(score),
                f"{score.standard_error:.1%}" if percent else f"{score.standard_error:,.4g}",
                "" if score.chance is None else f"{score.chance:.0%}",
                f"{score.items:,}",
            )
        )
    if len({score.task for score in scores}) > 1:
        mean, error = mean_accuracy(scores)
        rows.append(("mean", "acc", f"{mean:.1%}", f"{error:.1%}", "", ""))
    shots = scores[0].shots
    notes = [
        f"Asked through lm-evaluation-harness with {shots or 'no'} "
        f"example{'' if shots == 1 else 's'} in front."
    ]
    above = [
        score.task
        for score in scores
        if score.metric == "acc" and score.chance is not None
        and score.value - 1.96 * score.standard_error > score.chance
    ]  # fmt: skip
    notes.append(f"Above chance (95 %, acc): {', '.join(above) or 'none'}.")
    columns = ("task", "metric", "score", "± standard error", "chance", "items")
    if evaluation.beside is not None:
        theirs = [_score(score) for score in evaluation.beside.scores]
        mean = [""] * (len(rows) - len(theirs))
        columns = (*columns, "by HFLM")
        rows = [(*row, own) for row, own in zip(rows, [*theirs, *mean], strict=True)]
        notes.append(_beside_note(evaluation.beside, scores))
    return Section("tasks", "Tasks", columns, rows, notes)


def _score(score: TaskScore) -> str:
    return f"{score.value:,.4g}" if score.chance is None else f"{score.value:.1%}"


def _beside_note(beside: BesideRow, scores: list[TaskScore]) -> str:
    """Whether the scores are equal, and how long each program took."""
    shares = [
        pair for pair in zip(scores, beside.scores, strict=True) if pair[0].chance is not None
    ]
    same = sum(ours.value == theirs.value for ours, theirs in shares)
    return (
        f"HFLM is the harness's own wrapper for transformers: {same} of {len(shares)} shares are "
        f"equal to the last digit. Log-likelihoods took {beside.our_seconds:.1f} s here and "
        f"{beside.seconds:.1f} s there, {beside.seconds / beside.our_seconds:.1f} times as long."
    )


def _share(interval: Interval) -> str:
    half = interval.high - interval.mean
    return f"{interval.mean:.1%} ± {half:.1%}"


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
