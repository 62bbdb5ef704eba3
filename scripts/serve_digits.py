"""Open the page of a learner that knows ten digits, with images to ask it about; what `python3 dev.py serve` runs.

Command: python scripts/serve_digits.py [OPTION ...]     (options of `promptcl serve`; needs `promptcl[serve,demo]`)
The learner and the images are made in runs/digits at the first call and stay there; delete the folder to begin anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from promptcl import ImageSet, Learner, load_config, load_split

PLACE = Path(__file__).parents[1] / "runs" / "digits"


def write_images(images: ImageSet, folder: Path) -> None:
    """Write each image as FOLDER/CLASS/NUMBER.png."""
    for i, label in enumerate(images.labels):
        file = folder / images.classes[label] / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.image(i)[0].numpy()).save(file)


def make(place: Path) -> Path:
    """The store `digits` in `place`, made with its images if it is not there."""
    store, images = place / "digits", place / "images"
    if not (store / "learner.json").exists():
        print("learning ten digits, 40 images of each", flush=True)
        split = load_split(load_config("demo", ["data.train_per_class=40", "data.test_per_class=20"]).data)
        write_images(split.train, place / "learned")
        write_images(split.test, images)
        learner = Learner(load_config("grow-demo"))
        for name, digits in (("zero to four", "01234"), ("five to nine", "56789")):
            learner.learn(split.train.of_classes(list(digits)), name=name)
        learner.save(store)
    print(f"images to ask it about: {images}", flush=True)
    return store


if __name__ == "__main__":
    store = make(PLACE)
    from promptcl.cli.main import main

    sys.argv = ["promptcl", "serve", str(store), *(sys.argv[1:] or ["--open"])]
    main()
