"""The pictures of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airlock.core.spec import ModelSpec, Task

_BINS = 10
_MOST = 25


def curves(
    spec: ModelSpec,
    labels: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    importance: dict[str, float],
    folder: Path,
) -> None:
    """Write PNG files for held-out ``labels`` and ``scores`` of shape (rows,) and the inputs' importance."""
    if spec.task is Task.CLASSIFICATION:
        _roc_and_pr(labels, scores, folder)
        _calibration(labels, scores, folder)
    else:
        _predicted(labels, scores, folder)
    most = list(importance.items())[:_MOST][::-1]
    figure, axes = _figure("what shuffling one input costs", "increase of the loss", "")
    axes.barh([name for name, _ in most], [value for _, value in most])
    axes.tick_params(axis="y", labelsize=7)
    _save(figure, folder / "importance.png")


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    # Figure without pyplot: no global state, no display back end.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="tight")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=90)


def _roc_and_pr(labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], folder: Path) -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false, true, _ = roc_curve(labels, scores)
    figure, axes = _figure("ROC, held-out rows", "false positive rate", "true positive rate")
    axes.plot(false, true)
    axes.plot([0, 1], [0, 1], "k:", linewidth=1)
    _save(figure, folder / "roc.png")
    precision, recall, _ = precision_recall_curve(labels, scores)
    figure, axes = _figure("precision and recall, held-out rows", "recall", "precision")
    axes.plot(recall, precision)
    axes.axhline(labels.mean(), color="k", linestyle=":", linewidth=1)
    _save(figure, folder / "precision_recall.png")


def _calibration(labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], folder: Path) -> None:
    bins = np.array_split(np.argsort(scores, kind="stable"), _BINS)
    points = [(scores[rows].mean(), labels[rows].mean()) for rows in bins if rows.size]
    figure, axes = _figure("calibration, held-out rows in ten equal parts", "mean probability", "share of positives")
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.plot([0, 1], [0, 1], "k:", linewidth=1)
    _save(figure, folder / "calibration.png")


def _predicted(labels: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], folder: Path) -> None:
    figure, axes = _figure("held-out rows", "predicted", "actual")
    axes.scatter(scores, labels, s=6, alpha=0.5)
    reach = [min(scores.min(), labels.min()), max(scores.max(), labels.max())]
    axes.plot(reach, reach, "k:", linewidth=1)
    _save(figure, folder / "predicted.png")
