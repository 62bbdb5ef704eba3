"""A classifier learns five digits, then five more in a new process; see what it remembers.

Command: python examples/grow.py [FOLDER]     (needs `pip install "promptcl[demo]"`; about a minute on two cores)
The digits are 5,000 real ones from MNIST, written as PNG files, as your own images would lie in folders. Every step
is one call of the command `promptcl` in its own process; the second one has no image of the first five digits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from promptcl import ImageSet, load_config, load_split


def write_images(images: ImageSet, folder: Path) -> None:
    """Write each image as FOLDER/CLASS/NUMBER.png."""
    for i, label in enumerate(images.labels):
        file = folder / images.classes[label] / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.image(i)[0].numpy()).save(file)


def promptcl(*words: object) -> str:
    """One call of the command, in a process of its own; what it prints."""
    line = ["promptcl", *map(str, words)]
    print("$", " ".join(line), flush=True)
    done = subprocess.run([sys.executable, "-m", *line], check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return done.stdout


def main(folder: Path) -> float:
    """Run the story in `folder`; accuracy on the first five digits after the second task, percent."""
    split = load_split(load_config("demo", ["data.train_per_class=40", "data.test_per_class=20"]).data)
    first, second = [str(digit) for digit in range(5)], [str(digit) for digit in range(5, 10)]
    write_images(split.train.of_classes(first), folder / "monday")
    write_images(split.train.of_classes(second), folder / "tuesday")
    write_images(split.test.of_classes(first), folder / "test-first")
    write_images(split.test, folder / "test")
    store = folder / "digits"

    promptcl("learn", store, folder / "monday", "--recipe", "grow-demo")
    promptcl("learn", store, folder / "tuesday", "--check", folder / "test")
    image = sorted((folder / "test" / "7").iterdir())[0]
    promptcl("predict", store, image, "--top", 3)
    remembered: float = json.loads(promptcl("evaluate", store, folder / "test-first", "--json"))["accuracy"]
    print(f"of the first five digits, {remembered:.1f} % are still right, among all ten")
    return remembered


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
