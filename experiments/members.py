"""What is told of membership: a row for each seed and defence, their summary, and its table."""

from collections.abc import Iterable
from typing import Any

import numpy as np

import mixjax as mx
from experiments.results import Rows, percent

KIND = "membership"
SCORES = {"cosine": "cosine", "lira": "likelihood ratio"}
FIGURES = (
    "accuracy_members",
    "accuracy_others",
    *(f"{score}_{figure}" for score in SCORES for figure in ("auc", "true_positive_rate")),
)


def judged(scores: np.ndarray, members: np.ndarray, candidates: np.ndarray) -> dict[str, float]:
    """Figures of scores `[..., clients, records]`, of all participants' candidates together.

    Means over leading axes, which are draws of a mixing. NaN where a score is.

    Args:
      scores: higher for members.
      members: `[clients, records]`.
      candidates: which records are judged at all.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    known = [np.broadcast_to(part.ravel(), flat.shape) for part in (members, candidates)]
    return {
        "auc": float(np.mean(mx.evaluation.membership_auc(flat, *known))),
        "true_positive_rate": float(np.mean(mx.evaluation.true_positive_rate(flat, *known))),
    }


def summarize(
    rows: Rows, config: dict[str, Any], data: dict[str, Any], sessions: list[dict[str, Any]]
) -> dict[str, Any]:
    """The contents of `summary.json`; every interval is over seeds.

    Args:
      rows: all rows.
      config: the options; see `results.config_dict`.
      data: what data it is; see `provenance.of_data`.
      sessions: the processes that made the rows.
    """
    entries = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        entries[label] = {
            **{
                name: mx.evaluation.student([row[name] for row in own], within=(0, 1))._asdict()
                for name in FIGURES
            },
            **{name: own[0][name] for name in ("members", "others")},
            "excluded": sum(row["excluded"] for row in own),
        }
    return {
        "kind": KIND,
        "config": config,
        "data": data,
        "environment": sessions[-1]["environment"],
        "seconds": round(sum(session["seconds"] for session in sessions), 1),
        "sessions": sessions,
        "results": entries,
    }


def markdown(summary: dict[str, Any]) -> str:
    """The table for a page."""
    names = ["defence", "accuracy, members", "accuracy, others"]
    names += [f"{name}: {figure}" for name in SCORES.values() for figure in ("AUC", "TPR")]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for label, entry in summary["results"].items():
        cells = [label, *(percent(entry[name]) for name in FIGURES)]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("| *chance* |  |  | 50 | 1 | 50 | 1 |")
    return "\n".join(lines)


def section(title: str, notes: Iterable[str], summary: dict[str, Any]) -> str:
    """A section of the page.

    Args:
      title: of the configuration.
      notes: paragraphs that stand first.
      summary: see `summarize`.
    """
    config = summary["config"]
    first = next(iter(summary["results"].values()))
    conditions = (
        f"{config['rounds']} rounds, {config['seeds']} seeds, {config['epochs']} local epochs, "
        f"batches of {config['batch_size']}, SGD {config['learning_rate']:g} with momentum "
        f"{config['momentum']:g}; {config['shadows']} shadow models a seed. Each seed draws which "
        f"people take part and which half of each one's records of each class is trained on: "
        f"{first['members']:,} members and {first['others']:,} others, of the same classes. TPR is "
        f"the true-positive rate at 1 % false positives, of which {first['others']:,} others "
        f"allow {first['others'] // 100:,}."
    )
    return "\n\n".join([f"## {title}", *notes, conditions, markdown(summary), COMMENT])


COMMENT = """The server looks at one more round's updates. *Cosine*: does the update point along the
record's own descent direction? *Likelihood ratio* (LiRA's online attack, Carlini et al. 2022): is
the model that the update makes as sure of the record as models are that trained on it, or that
didn't? Its shadow models are whole federations of the same people from the same first model, each
trained on other halves. Both take slots for people, and behind a mixing are means over draws of it;
a server that joins layers again has plain FL's. *Sum only* is what secure aggregation leaves,
and what every server has: what the likelihood ratio finds there, the model itself gives away, and
no mixing hides."""
