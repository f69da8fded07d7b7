"""Make the evaluation sets from the held-out drawings.

`python bench/picto/evalsets.py --work DIR` writes DIR/evalsets.json: for each set the classes, and for
each drawing its manifest row, class and part (train, val or test). Rules for all sets:
- no two drawings of a class are near-duplicates of one another (split.py's measure; not for flags);
- drawings of one family of sets (outline and solid, old and new edition) stay in one part;
- at most `cap` drawings a class, and classes with fewer than `least` are left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from catalog import order_key
from corpus import read_manifest
from split import HASH_BITS, RMS, describe

FAMILY = {
    "lucide-lab": "lucide",
    "feather": "lucide",
    "heroicons-outline": "heroicons",
    "heroicons-solid": "heroicons",
    "famicons": "ion",
    "uis": "uil",
    "uim": "uil",
    "uit": "uil",
    "pepicons-pop": "pepicons",
    "pepicons-print": "pepicons",
    "pepicons-pencil": "pepicons",
    "streamline-plump-color": "streamline-plump",
    "devicon-plain": "devicon",
    "noto-v1": "noto",
}
LOGO_SETS = {"cib", "bxl", "devicon", "devicon-plain", "streamline-logos", "skill-icons"}
FLAG_SETS = {"circle-flags", "flagpack", "cif", "twemoji"}
EMOJI_SETS = {"twemoji", "noto"}
# Brands whose name is an everyday word: their drawings mix two meanings.
EVERYDAY_WORDS = """
    cake cursor flask atom fish ghost sketch medium apple windows steam opera safari unity linux box
    bear buffer go rust stencil ember express target shell meta line signal messenger patch layers play
    swift git html markdown python ruby chrome wallet nova zoom camera creative react
"""
AMBIGUOUS = set(EVERYDAY_WORDS.split())
ARROW_WORDS = ["arrow", "chevron", "caret", "up", "down", "left", "right", "circle"]
ARROW = re.compile(r"^(arrow|chevron|caret)( circle)?( up| down)?( left| right)?( circle)?$")


def distinct(rows: list[int], images: np.ndarray) -> list[int]:
    """The rows without near-duplicates of earlier ones."""
    kept, signs, thumbs = [], [], []
    for row in rows:
        sign, thumb = describe(np.asarray(images[row]))
        sign, thumb = sign.astype(int), thumb.astype(np.float32) / 255
        copies = (
            len(sign) - sign @ s <= 2 * HASH_BITS and np.sqrt(np.mean((thumb - t) ** 2)) < RMS
            for s, t in zip(signs, thumbs, strict=True)
        )
        if not any(copies):
            kept.append(row)
            signs.append(sign)
            thumbs.append(thumb)
    return kept


def limit(rows: list[int], manifest: list[dict], per_set: int) -> list[int]:
    """At most `per_set` drawings of each icon set, in a fixed pseudo-random order."""
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for row in sorted(rows, key=lambda r: order_key(manifest[r]["set"], manifest[r]["icon"])):
        taken[manifest[row]["set"]] += 1
        if taken[manifest[row]["set"]] <= per_set:
            kept.append(row)
    return kept


def assign_parts(groups: list[list[int]], test_share: float, val_share: float) -> list[tuple[int, str]]:
    """Fill the test part, then validation, then training, whole groups at a time."""
    total = sum(map(len, groups))
    parts, quota = [], {"test": max(1, round(total * test_share)), "val": max(1, round(total * val_share))}
    for group in groups:
        part = next((p for p in ("test", "val") if quota[p] > 0), "train")
        if part != "train":
            quota[part] -= len(group)
        parts += [(row, part) for row in group]
    return parts


def build(classes: dict, keys: dict[int, str], *, least: int, cap: int, shares=(0.35, 0.15)) -> dict:
    """One evaluation set from {class: rows}; rows of equal key stay in one part."""
    names, entries = [], []
    for name in sorted(classes):
        rows = classes[name][:cap]
        if len(rows) < least:
            continue
        groups = defaultdict(list)
        for row in rows:
            groups[keys[row]].append(row)
        ordered = sorted(groups.values(), key=lambda g: order_key(name, keys[g[0]]))
        parts = assign_parts(ordered, *shares)
        if {part for _, part in parts} == {"train", "val", "test"}:
            entries += [[row, len(names), part] for row, part in sorted(parts)]
            names.append(name)
    return {"class_names": names, "entries": entries}


def emoji_classes(work: Path, manifest: list[dict], rows: list[int]) -> tuple[dict, dict]:
    """{subcategory: rows} and {row: emoji} over the held-out emoji styles, without flags and keycaps."""
    groups, left_out = (
        {},
        {"country-flag", "subdivision-flag", "flag", "skin-tone", "hair-style", "keycap", "alphanum"},
    )
    for emoji in json.loads((work / "emoji.json").read_text()):
        if emoji["subcategory"] not in left_out:
            name = emoji["subcategory"].replace("-", " ").replace("&", "and")
            for code in (emoji["unified"], emoji["non_qualified"] or emoji["unified"]):
                groups[code.lower()] = name
    classes, keys = defaultdict(list), {}
    for style in sorted(EMOJI_SETS):
        chars = json.loads((work / "iconify" / "json" / f"{style}.json").read_text())["chars"]
        points = {icon: code for code, icon in chars.items() if code in groups}
        for row in rows:
            if manifest[row]["set"] == style and manifest[row]["icon"] in points:
                keys[row] = manifest[row]["icon"].removesuffix("-face")
                classes[groups[points[manifest[row]["icon"]]]].append(row)
    for name in classes:
        classes[name].sort(key=lambda r: (order_key("emoji", keys[r]), manifest[r]["set"]))
    return classes, keys


def main() -> None:
    """Write all sets and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    manifest, images = read_manifest(work), np.load(work / "images.npy", mmap_mode="r")
    # A page drawn all over in one colour is a failure of the renderer.
    held = [int(i) for i in np.load(work / "held.npy") if images[i].std() > 8]
    family = {r: FAMILY.get(manifest[r]["set"], manifest[r]["set"]) for r in held}
    by_text, logo_sets = defaultdict(list), defaultdict(set)
    for row in held:
        by_text[manifest[row]["text"]].append(row)
        if manifest[row]["set"] in LOGO_SETS:
            logo_sets[manifest[row]["text"]].add(family[row])
    icons, logos, arrows, flags = {}, {}, defaultdict(list), {}
    for text, rows in by_text.items():
        if text.startswith("flag ") and len({manifest[r]["set"] for r in rows} & FLAG_SETS) >= 4:
            flags[text] = sorted(limit([r for r in rows if manifest[r]["set"] in FLAG_SETS], manifest, 1))
        elif len(logo_sets[text]) >= 2:
            if text not in AMBIGUOUS and len(rows) >= 6:
                logos[text] = distinct(limit(rows, manifest, 2), images)
        elif ARROW.match(text):
            arrows[" ".join(sorted(text.split(), key=ARROW_WORDS.index))] += limit(rows, manifest, 2)
        elif len(rows) >= 12:
            rows = [r for r in rows if manifest[r]["set"] not in LOGO_SETS]
            icons[text] = distinct(limit(rows, manifest, 2), images)
    arrows = {name: distinct(rows, images) for name, rows in arrows.items()}
    emoji, emoji_keys = emoji_classes(work, manifest, held)
    sets = {
        "icons": build(icons, family, least=12, cap=24),
        "emoji": build(
            {n: distinct(rows, images) for n, rows in emoji.items()}, emoji_keys, least=16, cap=36
        ),
        "flags": build(flags, {r: str(r) for r in held}, least=4, cap=4, shares=(0.25, 0.25)),
        "logos": build(logos, family, least=6, cap=16),
        "arrows": build(arrows, family, least=10, cap=40),
    }
    (work / "evalsets.json").write_text(json.dumps(sets))
    for name, data in sets.items():
        parts = [part for *_, part in data["entries"]]
        print(
            f"{name}: {len(data['class_names'])} classes, {len(parts)} drawings",
            {p: parts.count(p) for p in ("train", "val", "test")},
        )
        print("  ", data["class_names"])


if __name__ == "__main__":
    main()
