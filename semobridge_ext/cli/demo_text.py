"""The demo's words: tables, and sentences that say what the figures show, whichever way they fall."""

from __future__ import annotations

from typing import Any

NAMES = {
    "text": "zero-shot text",
    "direct": "direct prototypes",
    "bridged_prototypes": "bridged prototypes",
    "bridged_queries": "bridged queries",
    "blend": "blend",
    "blend_unbridged": "blend without the bridge",
}
SHORT = NAMES | {"text": "text", "direct": "direct", "blend_unbridged": "same, no bridge"}
NO_DIFFERENCE = "no difference beyond noise"


def _with(shots: list[str]) -> str:
    return f"with {_list(shots)} {'shot' if shots == ['1'] else 'shots'}"


def plural(k: int | str) -> str:
    return f"{k} shot" if int(k) == 1 else f"{k} shots"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _points(difference: dict[str, Any]) -> str:
    mark = "*" if difference["beyond_noise"] else " "
    return f"{100 * difference['mean']:+.2f} ± {100 * difference['std']:.2f}{mark}"


def _verdict(rows: dict[str, Any]) -> str:
    """What a row of paired differences shows, by number of shots."""
    gains = [k for k, d in rows.items() if d["beyond_noise"] and d["mean"] > 0]
    losses = [k for k, d in rows.items() if d["beyond_noise"] and d["mean"] < 0]
    ties = [k for k, d in rows.items() if not d["beyond_noise"]]
    if len(ties) == len(rows):
        return NO_DIFFERENCE
    found = (("a gain beyond noise", gains), ("a loss beyond noise", losses), (NO_DIFFERENCE, ties))
    parts = []
    for what, shots in found:
        if len(shots) == len(rows):
            return f"{what} at every number of shots"
        if shots:
            parts.append(f"{what} {_with(shots)}")
    return "; ".join(parts)


def header(figures: dict[str, Any]) -> str:
    return (
        f"{figures['set']} ({figures['description'].rstrip('.')})\n"
        f"{figures['classes']} classes, {figures['train_images']} drawings to take shots from, "
        f"{figures['test_images']} test drawings; guessing gets {100 * figures['chance']:.1f} %"
    )


def remarks(figures: dict[str, Any]) -> list[str]:
    """What a reader must know of the shots before reading the table."""
    most, found = figures["most_per_class"], []
    if figures["shots_left_out"]:
        left_out = _list([str(k) for k in figures["shots_left_out"]])
        found.append(f"No class has more than {most} drawings to take shots from: {left_out} left out.")
    short = {k: n for k, n in figures["short_classes"].items() if n}
    if short:
        listed = _list([f"{n} of {figures['classes']} {_with([k])}" for k, n in short.items()])
        found.append(f"Some classes have fewer drawings than shots and give all they have: {listed}.")
    if most in figures["shots"] and len(figures["seeds"]) > 1 and figures["fewest_per_class"] == most:
        found.append(
            f"Every class has exactly {most} drawings to take shots from: {_with([str(most)])} all seeds "
            "take the same ones and have no spread."
        )
    return found


def accuracy_table(figures: dict[str, Any]) -> str:
    """Accuracy in %, mean ± standard deviation over the seeds."""
    shots = [str(k) for k in figures["shots"]]
    seeds = len(figures["seeds"])
    width = max(map(len, NAMES.values()))
    title = f"accuracy in %, {seeds} seeds"
    lines = [f"{title:<{width}}" + "".join(f"{plural(k):>14}" for k in shots)]
    for method, name in NAMES.items():
        cells = []
        for k in shots:
            cell = figures["accuracy"][method][k]
            # Text uses no shots: it has one value, not a spread of zero.
            spread = "       " if method == "text" or seeds == 1 else f" ± {100 * cell['std']:4.1f}"
            cells.append(f"{100 * cell['mean']:>7.1f}{spread}")
        lines.append(f"{name:<{width}}" + "".join(cells))
    return "\n".join(lines)


def difference_table(figures: dict[str, Any]) -> str:
    """Paired differences in points; a star marks those beyond noise."""
    shots = [str(k) for k in figures["shots"]]
    title = "difference in points"
    labels = [" - ".join(SHORT.get(m, m) for m in pair.split(" - ")) for pair in figures["differences"]]
    width = max(map(len, [title, *labels]))
    lines = [f"{title:<{width}}" + "".join(f"{plural(k):>15} " for k in shots)]
    for label, rows in zip(labels, figures["differences"].values(), strict=True):
        lines.append(f"{label:<{width}}" + "".join(f"{_points(rows[k]):>16}" for k in shots))
    lines.append("(* beyond noise)")
    return "\n".join(line.rstrip() for line in lines)


def speed_table(speed: dict[str, Any]) -> str:
    lines = [f"time per image, median, {speed['threads']} threads   bridge    eager    ratio"]
    for key, label in (("one", "one image"), ("batch", "batch of {}")):
        row = speed[key]
        lines.append(
            f"{label.format(row['images']):<39}{1e6 * row['native_seconds']:7.2f} µs"
            f"{1e6 * row['eager_seconds']:7.2f} µs{row['ratio']:7.2f}"
        )
    return "\n".join(lines)


def _text_and_direct(figures: dict[str, Any]) -> str:
    accuracy, shots = figures["accuracy"], [str(k) for k in figures["shots"]]
    text = accuracy["text"][shots[0]]["mean"]
    first = f"Zero-shot text gets {100 * text:.1f} %, {text / figures['chance']:.0f} times guessing."
    above = [k for k in shots if accuracy["direct"][k]["mean"] > text]
    if not above:
        second = f"Direct image prototypes stay below it, up to {plural(shots[-1])}."
    elif above == shots:
        second = "Direct image prototypes are above it at every number of shots."
    elif above == shots[-len(above) :]:
        second = f"Direct image prototypes are above it from {plural(above[0])} on."
    else:
        second = f"Direct image prototypes are above it only {_with(above)}."
    return f"{first} {second}"


def _bridge_alone(figures: dict[str, Any]) -> str:
    """Bridged against direct comparison, and whether that is more than noise."""
    differences = figures["differences"]
    prototypes, queries = (
        _verdict(differences[f"{method} - direct"]) for method in ("bridged_prototypes", "bridged_queries")
    )
    if prototypes == queries:
        return f"Bridged prototypes and bridged queries, against direct prototypes: {prototypes}."
    return f"Against direct prototypes, bridged prototypes show {prototypes}; bridged queries show {queries}."


def _blend(figures: dict[str, Any]) -> list[str]:
    accuracy, differences = figures["accuracy"], figures["differences"]
    gains = {}
    for k in map(str, figures["shots"]):
        rival = "text" if accuracy["text"][k]["mean"] >= accuracy["direct"][k]["mean"] else "direct"
        gains[k] = differences[f"blend - {rival}"][k]
    first = f"The blend, against the better of text and direct prototypes: {_verdict(gains)}."
    if any(d["beyond_noise"] and d["mean"] < 0 for d in gains.values()):
        first += (
            " Equal weights give the images two of three voices; nothing was tuned on validation drawings."
        )
    control = _verdict(differences["blend - blend_unbridged"])
    if control == NO_DIFFERENCE and any(d["beyond_noise"] and d["mean"] > 0 for d in gains.values()):
        control += "; what the blend gains comes from joining text and images, not from the bridge"
    return [first, f"The blend, against the same blend without the bridge: {control}."]


def _gap(figures: dict[str, Any]) -> str:
    gap = figures["gap"]
    before, after = gap["gap_before"], gap["gap_after"]
    change = (before - after) / before if before else 0.0
    effect = (
        "the same to within 1 %"
        if abs(change) < 0.01
        else f"{abs(100 * change):.0f} % {'smaller' if change > 0 else 'larger'}"
    )
    cosine = gap["mean_cosine_to_bridged"]
    turn = "hardly turns" if cosine > 0.99 else "turns"
    return (
        f"The modality gap is {before:.3f} before and {after:.3f} after bridging, {effect}. The bridge "
        f"keeps {gap['rank']} of {gap['width']} dimensions and {turn} a feature: mean cosine {cosine:.4f} "
        "between a drawing's feature and its bridged one."
    )


def speed_finding(speed: dict[str, Any]) -> str:
    parts = []
    for key, label in (("one", "one image"), ("batch", "a batch of {}")):
        row = speed[key]
        ratio = row["ratio"]
        if ratio < 0.95:
            word = f"{1 / ratio:.1f} times faster"
        elif ratio <= 1.05:
            word = "just as fast"
        else:
            word = f"{ratio:.1f} times slower"
        parts.append(f"{word} for {label.format(row['images'])}")
    worst = max(speed[key]["largest_difference"] for key in ("one", "batch"))
    return f"Against the eager program the bridge is {_list(parts)}; results agree to {worst:.0e}."


def findings(figures: dict[str, Any]) -> list[str]:
    """What the figures of one set show, a sentence or two a thing."""
    return [_text_and_direct(figures), _bridge_alone(figures), *_blend(figures), _gap(figures)]
