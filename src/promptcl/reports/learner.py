"""Write one HTML page about a learner: what it learned, and how it answers images of which the class is known."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from torch import Tensor

from promptcl import store
from promptcl.config import Config
from promptcl.data import ImageSet, labelled
from promptcl.errors import UserError
from promptcl.learner import Calibration, Learner
from promptcl.methods._base import Method, load_method
from promptcl.reports import learner_figures as figures
from promptcl.reports import page
from promptcl.reports.answers import Answers, Floats
from promptcl.reports.drawing import short
from promptcl.reports.page import Shown
from promptcl.store import TaskRecord

MOST_IMAGES = 24
SIDE = 144  # pixels of a thumbnail
LEFT_OUT = "the images learned, each left out of what answers it"
TITLES = {
    "wrong": ("Wrong answers", "the surest first"),
    "passed": ("Never learned, and yet named", "the most familiar first"),
    "unknown": ("Called unknown", "the least familiar first"),
    "unsure": ("Right, but hardly sure", "the least sure first"),
}


@dataclass(frozen=True)
class About:
    """What a page says about a learner without any image."""

    folder: Path
    classes: list[str]
    tasks: list[TaskRecord]
    calibration: Calibration
    config: Config
    backbone: dict[str, Any]


@dataclass(frozen=True)
class Thumbnail:
    """A small image with its class and the answers that it was given."""

    data: str
    """The image as a data URI."""
    true: str
    learned: bool
    """Whether that class was ever learned."""
    answers: list[str]
    """The most probable classes with their probabilities, best first."""
    file: str


def write(
    folder: Path, out: Path, images: Path | None = None, settings: Sequence[str] = (), trust: bool = False
) -> int:
    """Write the page `out` about the learner in `folder`, with figures as of `page.save`; returns their number.

    images: a folder with one folder a class, or an archive, to measure on; None: the images learned, each left out,
    where the method can and the weights are there. settings, trust: as of `Learner.load`.
    Raises:
        UserError: no learner, or none that knows a class; images or weights that cannot be read; `out` is no .html.
        OSError: `out` cannot be written.
    """
    page.check(out)
    saved = store.load(folder, settings, trust)
    about = About(folder, saved.classes, saved.tasks, Calibration.of(saved.notes), saved.config, saved.backbone)
    if not about.classes:
        raise UserError(f"{folder} knows no class yet; learn a folder of images first")
    tests = None if images is None else labelled(images, cache_mb=saved.config.data.cache_mb)
    try:
        # A method that cannot leave out images does not need its weights for a page without any.
        able = load_method(saved.config.method["name"]).out_of_fold is not Method.out_of_fold
        learner = Learner.load(folder, settings, trust=trust) if able or tests is not None else None
    except UserError as error:
        if tests is not None:
            raise
        return write_about(about, out, None, f"This learner could not be asked: {error}.")
    if learner is not None and learner.classes != about.classes:
        raise UserError(f"{folder} has learned more meanwhile; repeat the command")
    if tests is not None and learner is not None:
        return write_about(about, out, measured(learner, tests, f"the images in {images}"))
    return write_about(about, out, *(left_out(learner) if learner is not None else (None, "")))


def measured(learner: Learner, images: ImageSet, source: str) -> Answers:
    """The answers of `learner` to labelled images, of classes that it never learned too."""
    names = [*learner.classes, *learner.new(images.classes)]
    place = {name: i for i, name in enumerate(names)}
    labels = np.array([place[name] for name in images.classes], dtype=np.int64)[images.labels]
    logits_NK, familiarity_N = learner.answers(images, learner.labels(images, unseen=True))
    learner.method.stats.clear()
    return Answers(source, names, labels, *_calibrated(learner, logits_NK, familiarity_N), images)


def left_out(learner: Learner) -> tuple[Answers | None, str]:
    """The answers to the images learned, each left out of what answers it, and a remark; None where there are none."""
    found = learner.left_out()
    if found is None:
        return None, ""
    images = sum(sum(task.images.values()) for task in learner.history)
    alone = images - len(found.labels_N)
    if alone == images:
        return None, "Each image it learned is the only one of its class."
    remark = f"Not counted: {alone:,}, each the only image of its class. " if alone else ""
    values = _calibrated(learner, found.logits_NK, found.familiarity_N)
    answers = Answers(LEFT_OUT, learner.classes, found.labels_N.cpu().numpy(), *values)
    return answers, f"{remark}Temperature and threshold were drawn from these same answers."


def _calibrated(
    learner: Learner, logits_NK: Tensor, familiarity_N: Tensor | None
) -> tuple[Floats, Floats, float | None]:
    """Probabilities [N, K], familiarity [N] and the threshold on it."""
    calibration = learner.calibration
    probabilities = (logits_NK.float() / calibration.temperature).softmax(1).nan_to_num().cpu().numpy()
    familiarity = probabilities.max(1) if familiarity_N is None else familiarity_N.float().cpu().numpy()
    return probabilities, familiarity, calibration.threshold


def write_about(about: About, out: Path, answers: Answers | None, remark: str = "") -> int:
    """Write the page `out` about a learner, with its `answers` where there are any; returns the number of figures.

    remark: what is to be known of how it was measured, or why it was not, in whole sentences.
    """
    measured = [] if answers is None else _measured_figures(about, answers)
    past = [figures.history(about.tasks), figures.images_per_class(about.classes, about.tasks)]
    text = page.render(
        "learner.html.j2",
        title=about.folder.resolve().name[:80],
        name=about.folder.resolve().name,
        facts=_facts(about, answers),
        calibration=about.calibration,
        answers=answers,
        remark=remark,
        measured=measured,
        galleries=[] if answers is None else _galleries(answers),
        past=past,
        command=f"promptcl report {shlex.quote(str(about.folder))} --images FOLDER",
        backbone=about.backbone,
        settings=yaml.safe_dump(about.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    return page.save(out, text, [*measured, *past])


def _facts(about: About, answers: Answers | None) -> list[tuple[str, str]]:
    """The numbers at the head of the page."""
    facts = []
    if answers is not None:
        if answers.accuracy is not None:
            facts += [("accuracy", f"{answers.accuracy:.1f} %"), ("images measured", f"{answers.known.sum():,}")]
        if strangers := int((~answers.known).sum()):
            facts.append(("of other classes", f"{strangers:,}"))
    images = sum(sum(task.images.values()) for task in about.tasks)
    facts += [("classes", f"{len(about.classes):,}"), ("tasks", f"{len(about.tasks):,}")]
    facts += [("images learned", f"{images:,}"), ("method", str(about.config.method["name"]))]
    if about.calibration.threshold is not None:
        facts.append(("unknown below", f"familiarity {about.calibration.threshold:.2f}"))
    return facts


def _measured_figures(about: About, answers: Answers) -> list[Shown]:
    """Figures about the answers; what cannot be said without images of learned classes is left out."""
    found = [figures.accuracies(answers)] if answers.known.any() else []
    found += figures.confusion(answers, about.tasks)
    found += [figures.reliability(answers)] if answers.known.any() else []
    return found + ([] if answers.threshold is None else [figures.unknown(answers, answers.threshold)])


def _galleries(answers: Answers) -> list[tuple[str, str, list[Thumbnail]]]:
    """Title, order and thumbnails of each kind of image that is worth a look."""
    found = answers.shown(MOST_IMAGES) if answers.images is not None else {}
    return [(*TITLES[kind], [_thumbnail(answers, i) for i in rows]) for kind, rows in found.items() if rows]


def _thumbnail(answers: Answers, i: int) -> Thumbnail:
    assert answers.images is not None
    row = answers.probabilities[i]
    best = np.argsort(-row, kind="stable")[:3]
    return Thumbnail(
        _jpeg(np.asarray(answers.images.image(i))),
        short(answers.names[answers.labels[i]]),
        bool(answers.known[i]),
        [f"{short(answers.names[k], 30)}: {100 * row[k]:.0f} %" for k in best],
        short("/".join(Path(answers.images.name(i)).parts[-2:]), 60),
    )


def _jpeg(pixels: Any) -> str:
    """A small JPEG of uint8 (3, H, W) as a data URI; small images are enlarged without blurring them."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    if max(image.size) <= SIDE // 2:
        times = SIDE // max(image.size)
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
