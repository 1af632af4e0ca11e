"""The report's charts: matplotlib figures as SVG text."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker

mpl.use("svg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, ACCENT, SECOND, WARM = "#1f2a37", "#d5dbe3", "#2563a8", "#7a9cc6", "#c8553d"
_STYLE: Any = {
    "font.size": 10,
    # Names of classes may be in any script; the first of these fonts that has a sign draws it.
    "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans", "sans-serif"],
    "svg.fonttype": "none",  # text stays text: small, selectable, drawn in whatever font the reader has
    "svg.hashsalt": "pawsort",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a3",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
}


def learning_curves(history: Mapping[str, Sequence[float]]) -> str:
    """Loss, and accuracy on changed training pictures and on validation photos, by epoch."""

    def draw(axes: Axes) -> None:
        epochs = np.arange(1, len(history["loss"]) + 1)
        axes.plot(epochs, history["validation"], color=ACCENT, marker="o", ms=4, label="validation accuracy")
        axes.plot(
            epochs, history["accuracy"], color=SECOND, marker="o", ms=3, label="accuracy on training pictures"
        )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        losses = axes.twinx()
        losses.plot(epochs, history["loss"], color=WARM, lw=1, ls="--", label="loss")
        losses.set_ylabel("loss", color=WARM)
        lines = [*axes.get_lines(), *losses.get_lines()]
        axes.legend(
            lines,
            [str(line.get_label()) for line in lines],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=3,
            fontsize=8,
        )

    return _svg(draw)


def confusion(matrix: Mapping[str, Mapping[str, int]], labels: Sequence[str]) -> str:
    """What the photos of each class were taken for."""

    def draw(axes: Axes) -> None:
        counts = np.array([[matrix[true][called] for called in labels] for true in labels])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
        names = [name if len(name) <= 18 else name[:17] + "…" for name in labels]
        axes.set_xticks(range(len(labels)), names, rotation=0 if len(labels) <= 5 else 90)
        axes.set_yticks(range(len(labels)), names)
        axes.set_xlabel("taken for")
        axes.set_ylabel("is")
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(labels) <= 20:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.55 else INK
                axes.text(column, row, str(count), ha="center", va="center", color=colour)

    side = min(max(3.2, 0.55 * len(labels) + 1.5), 11)
    return _svg(draw, (side + 0.6, side))


def reliability(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any], bins: int = 10) -> str:
    """Share right against confidence: on the diagonal, confidence means what it says."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, lw=1.5)
        number = np.minimum((confidence * bins).astype(int), bins - 1)
        for index in range(bins):
            inside = number == index
            if inside.any():
                axes.plot(
                    confidence[inside].mean(), right[inside].mean(), "o", color=ACCENT,
                    ms=4 + 12 * np.sqrt(inside.mean()), alpha=0.85,
                )  # fmt: skip
                axes.annotate(
                    str(int(inside.sum())), (confidence[inside].mean(), right[inside].mean()),
                    textcoords="offset points", xytext=(0, -17), ha="center", fontsize=8,
                )  # fmt: skip
        axes.set_xlim(0, 1.04)
        axes.set_ylim(-0.08, 1.06)
        axes.set_xlabel("confidence (mean of a tenth; the number counts its photos)")
        axes.set_ylabel("share right")

    return _svg(draw)


def coverage(
    confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any], chosen: tuple[float | None, float | None]
) -> str:
    """Precision of the photos that are sorted by themselves against how many those are, for every threshold."""

    def draw(axes: Axes) -> None:
        order = np.argsort(-confidence, kind="stable")
        counts = np.arange(1, len(order) + 1)
        precision = np.cumsum(right[order]) / counts
        axes.plot(counts / len(order), precision, color=ACCENT, lw=2, label="any threshold on the confidence")
        if chosen[0] is not None and chosen[1] is not None:
            axes.plot([chosen[0]], [chosen[1]], "o", color=WARM, ms=9, label="as chosen on validation photos")
        axes.set_xlabel("share sorted without asking")
        axes.set_ylabel("share of those that are right")
        axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        axes.set_xlim(min(0.5, chosen[0] or 0.5), 1.01)
        axes.set_ylim(min(0.95, float(precision[len(order) // 2 :].min()) - 0.01), 1.003)
        axes.legend(loc="lower left", fontsize=9)

    return _svg(draw)


def confidence_histogram(known: Iterable[float], strangers: Iterable[float]) -> str:
    """Confidence of photos of the classes and of photos of none."""

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, 41)
        for values, colour, name in (
            (list(known), ACCENT, "of the classes"),
            (list(strangers), WARM, "of no class"),
        ):
            weights = np.full(len(values), 1 / max(len(values), 1))
            axes.hist(
                values,
                edges.tolist(),
                weights=weights,
                color=colour,
                alpha=0.75,
                label=f"{len(values)} photos {name}",
            )
        axes.set_xlabel("confidence")
        axes.set_ylabel("share of photos")
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axes.legend(loc="upper center", fontsize=9)

    return _svg(draw)


# The report's reader has fonts of their own; that this machine lacks one of those named above is no news.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def _svg(draw: Callable[[Axes], None], size: tuple[float, float] = (5.6, 3.5)) -> str:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A script that none of this machine's fonts can measure; the reader's browser has its own.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        warnings.filterwarnings("ignore", message=r"findfont")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
