"""Choose the drawings: licences, held-out sets, names as texts, at most so many a set.

`python bench/picto/catalog.py --work DIR` writes DIR/manifest.jsonl, one line a drawing:
`{"set", "icon", "text", "held"}`. Deterministic: the same packages give the same manifest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

LICENCES = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "OFL-1.1",
    "BSD-3-Clause",
    "Unlicense",
}
# Whole sets that the model never sees. Sets of one family are held out together.
HELD_OUT_SETS = """
    tabler lucide lucide-lab feather bi heroicons heroicons-outline heroicons-solid ion famicons octicon
    radix-icons jam gg uil uis uim uit pixelarticons basil iconoir teenyicons akar-icons eva gravity-ui
    zondicons humbleicons clarity vaadin grommet-icons majesticons marketeq flat-color-icons
    streamline-plump streamline-plump-color maki twemoji noto noto-v1 circle-flags flagpack cif cib bxl
    devicon devicon-plain streamline-logos skill-icons pepicons pepicons-pop pepicons-print
    pepicons-pencil nrk
"""
# Names that are no words, drawings that are animated, or parts that mean nothing alone.
SKIPPED_SETS = """
    whh ls picon memory geo academicons bpmn svg-spinners line-md k8s token token-branded cryptocurrency
    cryptocurrency-color fxemoji nonicons fontelico meteocons mono-icons emblemicons
"""
HELD_OUT, SKIPPED = set(HELD_OUT_SETS.split()), set(SKIPPED_SETS.split())
LOGO_CAP, CAP, HELD_CAP, HUGE_CAP = 600, 1800, 1700, 3500
HUGE = {"iconmind", "fluent", "material-symbols", "ic", "ph", "solar", "mdi", "hugeicons", "game-icons"}
LOGO_CATEGORIES = {"Logos", "Programming"}
STYLE_LAST_WORDS = """
    outline outlined outlines filled fill solid duotone twotone rounded sharp fll stroke stroked linear
    broken variant alt negative o f sc rtl ltr 24px rect circled flat mini
"""
STYLE_FIRST_WORDS = "baseline outline twotone bxs bxl bx ios md logo brand brands i icon sc"
STYLE_TAIL, STYLE_HEAD = set(STYLE_LAST_WORDS.split()), set(STYLE_FIRST_WORDS.split())
COUNTS = {"one", "two", "three", "four", "five", "six"}
SKIN = re.compile(r"skin-tone|-(light|medium|dark)$|-(light|medium|dark)-(light|medium|dark)$")


def strip_variant(icon: str, suffixes: list[str], prefixes: list[str]) -> str:
    """Drop the style the set itself declares: its longest matching suffix and prefix."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if suffix and icon.endswith("-" + suffix):
            icon = icon[: -len(suffix) - 1]
            break
    for prefix in sorted(prefixes, key=len, reverse=True):
        if prefix and icon.startswith(prefix + "-"):
            icon = icon[len(prefix) + 1 :]
            break
    return icon


def clean_name(set_name: str, icon: str, suffixes: list[str], prefixes: list[str]) -> str:
    """Turn an icon's name into words: `alarm-clock-2-outline` gives `alarm clock`."""
    words = [w for w in re.split(r"[-_\s]+", strip_variant(icon, suffixes, prefixes).lower()) if w]
    words = [re.sub(r"^([a-z]{4,})\d{1,2}$", r"\1", w) for w in words]
    while len(words) > 1 and (words[-1] in STYLE_TAIL or words[-1].isdigit()):
        words.pop()
    while len(words) > 1 and words[0] in STYLE_HEAD:
        words.pop(0)
    if len(words) > 1 and words[-1] in ("logo", "icon", "wordmark", "original"):
        words.pop()
    if set_name.startswith("icon-park") and len(words) > 1 and words[-1] in COUNTS:
        words.pop()
    if words[:2] in (["file", "type"], ["folder", "type"]) and len(words) > 2:
        words = words[2:]
    return " ".join(words)


def load_countries(path: Path) -> dict[str, str]:
    """Read {two-letter code: lower-case country name} from the emoji list."""
    countries = {}
    for emoji in json.loads(path.read_text()):
        points = [int(p, 16) for p in emoji["unified"].split("-")]
        if emoji["category"] == "Flags" and all(0x1F1E6 <= p <= 0x1F1FF for p in points):
            code = "".join(chr(p - 0x1F1E6 + ord("a")) for p in points)
            name = emoji["name"].lower().removesuffix(" flag").replace("&", "and")
            countries[code] = re.sub(r"[^\w ]", "", name)
    return countries


def flag_text(set_name: str, icon: str, text: str, countries: dict[str, str]) -> str | None:
    """`flag <country>` for a country's flag in any set's spelling, None for codes that are no country."""
    if set_name in ("flag", "circle-flags", "flagpack", "cif"):
        name = countries.get(re.sub(r"-(1x1|4x3)$", "", icon))
        return f"flag {name}" if name else None
    return re.sub(r"^flag for (flag )?", "flag ", text)


def order_key(*parts: str) -> str:
    """A fixed pseudo-random order that does not depend on Python's hash seed."""
    return hashlib.sha1("\0".join(parts).encode()).hexdigest()


def read_set(path: Path, countries: dict[str, str]) -> list[tuple[str, str]]:
    """All usable (icon, text) pairs of one set."""
    data = json.loads(path.read_text())
    suffixes, prefixes = list(data.get("suffixes", {})), list(data.get("prefixes", {}))
    is_emoji = "emoji" in path.stem or path.stem.startswith("noto")
    pairs = []
    for icon, entry in data["icons"].items():
        if entry.get("hidden") or (is_emoji and SKIN.search(icon)):
            continue
        # Very long bodies are traced bitmaps: slow to draw, and nothing of them is left at 48 pixels.
        if len(entry["body"]) > 30_000 or "<image" in entry["body"]:
            continue
        text = flag_text(path.stem, icon, clean_name(path.stem, icon, suffixes, prefixes), countries)
        if text and len(text.split()) <= 6 and re.search(r"[a-z]", text) and text.isascii():
            pairs.append((icon, text))
    return pairs


def choose(set_name: str, pairs: list[tuple[str, str]], spread: Counter, cap: int) -> list[tuple[str, str]]:
    """At most `cap` pairs: names drawn in many sets first, a fifth of the places for the others."""
    by_text = defaultdict(list)
    for icon, text in pairs:
        by_text[text].append(icon)
    kept = []
    for text, icons in by_text.items():
        icons.sort(key=lambda icon: order_key(set_name, icon))
        kept += [(icon, text) for icon in icons[: 3 if spread[text] >= 10 else 2]]
    if len(kept) <= cap:
        return kept
    kept.sort(key=lambda pair: (-spread[pair[1]], order_key(set_name, pair[0])))
    head, tail = kept[: cap * 4 // 5], kept[cap * 4 // 5 :]
    tail.sort(key=lambda pair: order_key(set_name, *pair))
    return head + tail[: cap - len(head)]


def main() -> None:
    """Write the manifest and print what was taken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    collections = json.loads((work / "iconify" / "collections.json").read_text())
    countries = load_countries(work / "emoji.json")
    allowed = {name for name, entry in collections.items() if entry["license"].get("spdx") in LICENCES}
    paths = sorted((work / "iconify" / "json").glob("*.json"))
    sets = {path.stem: read_set(path, countries) for path in paths if path.stem in allowed - SKIPPED}
    spread = Counter(text for pairs in sets.values() for text in {text for _, text in pairs})
    totals = Counter()
    with open(work / "manifest.jsonl.part", "w") as sink:
        for name, pairs in sets.items():
            held = name in HELD_OUT
            logos = collections[name].get("category") in LOGO_CATEGORIES
            cap = HELD_CAP if held else LOGO_CAP if logos else HUGE_CAP if name in HUGE else CAP
            for icon, text in choose(name, pairs, spread, cap):
                totals[held] += 1
                sink.write(json.dumps({"set": name, "icon": icon, "text": text, "held": held}) + "\n")
    (work / "manifest.jsonl.part").rename(work / "manifest.jsonl")
    held = len(HELD_OUT & set(sets))
    print(f"{len(sets)} sets, {held} of them held out; {totals[False]} and {totals[True]} drawings")


if __name__ == "__main__":
    main()
