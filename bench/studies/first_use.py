"""A new user's way, timed: a folder of 60 images, features, a few-shot classifier, a search.

    python bench/studies/first_use.py [--images FOLDER]

Once in Python by the lines of the README, once by its commands, each in a process of its own, as a user
starts them. Without a folder, ten drawings of each of six embedded logos are written as PNG files. Every step
prints its seconds, with the start of the process and its imports, and what it found, so that a fast wrong
way shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_CLASS = 10
CLASSES = ("android", "dropbox", "figma", "github", "spotify", "whatsapp")

# The README's lines with a folder in place of the embedded set; what follows them prints.
PROGRAM = """
import time
began = time.perf_counter()
import torch
torch_seconds = time.perf_counter() - began
import sys
import semobridge_ext as sb
laps = {"import torch": torch_seconds, "import semobridge_ext": time.perf_counter() - began - torch_seconds}
def lap(name, last=[time.perf_counter()]):
    laps[name], last[0] = time.perf_counter() - last[0], time.perf_counter()

model, preprocess, tokenizer = sb.load_picto_clip()
lap("model")
found = sb.encode_images(model, sys.argv[1], normalize=False)
x, y, names = found.features, found.labels, sorted(set(found.labels))
lap("encode the images")
text = sb.class_text_features(model, names, ["{}", "a logo of {}"], tokenizer=tokenizer)
lap("encode the class names")
train, val, test = (range(at, len(x), 3) for at in range(3))
clf = sb.GDA(text.projected, class_names=names).fit(x[train], [y[i] for i in train])
clf.tune(x[val], [y[i] for i in val])
lap("fit and tune GDA")
scores, indices = sb.Gallery(x, normalize=True).topk(x[:1], 6)
lap("search")

truth = [y[i] for i in test]
zero = sb.ZeroShot(text.projected, class_names=names).fit(x[train], [y[i] for i in train])
hits = sum(y[i] == y[0] for i in indices[0, 1:].tolist())
print(*(f"  {seconds:7.2f} s  {name}" for name, seconds in laps.items()), sep="\\n")
print(f"  {len(x)} images of {len(names)} classes; test accuracy {clf.score(x[test], truth):.1%}, zero-shot "
      f"{zero.score(x[test], truth):.1%}; {hits} of the first image's 5 neighbours share its class")
"""


def write_drawings(folder: Path) -> None:
    from PIL import Image

    import semobridge_ext as sb

    logos = sb.load_picto("logos")
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        rows = [i for i, label in enumerate(logos.labels.tolist()) if logos.class_names[label] == name]
        for i in rows[:PER_CLASS]:
            Image.fromarray(logos.images[i].numpy()).resize((224, 224)).save(folder / name / f"{i}.png")


def timed(*command: object, cwd: Path) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stderr}")
    return seconds, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="one sub-folder a class")
    given = parser.parse_args().images
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        images = given.resolve() if given else work / "photos"
        if not given:
            write_drawings(images)
        seconds, told = timed(sys.executable, "-c", PROGRAM, images, cwd=work)
        print(f"Python, {seconds:.2f} s from start to end:\n{told}")
        first = next(path for path in sorted(images.glob("*/*")) if path.is_file())
        shell = (sys.executable, "-m", "semobridge_ext.cli")
        shots = ("--shots", 2, "--seeds", 2, "--trials", 100, "--methods", "zero-shot", "GDA", "SeMoBridge")
        commands = {
            "extract": ("extract", images, "feats", "--quiet"),
            "search --text": ("search", "feats", "--text", first.parent.name, "-k", 5, "--json", "text.json"),
            "search --image": (
                "search", "feats", "--image", first, "-k", 6, "--json", "image.json", "--out", "sheet.png",
            ),
            "fewshot": (
                "fewshot", "--dataset", images, *shots, "--no-plot", "--quiet", "--out", "study",
            ),
        }  # fmt: skip
        total = 0.0
        for name, words in commands.items():
            seconds, told = timed(*shell, *words, cwd=work)
            total += seconds
            print(f"  {seconds:7.2f} s  semobridge-ext {name}")
        print(f"commands, {total:.2f} s in all; the last one's table:\n{told}")
        for name in ("text", "image"):
            hits = json.loads((work / f"{name}.json").read_text())
            print(f"{name}: {json.dumps(hits)[:300]}")


if __name__ == "__main__":
    main()
