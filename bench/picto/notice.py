"""Write NOTICE: whose drawings were used for what, under which licence.

`python bench/picto/notice.py --work DIR` writes NOTICE at the repository's root.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from corpus import read_manifest
from fetch import EMOJI, ICONIFY

TARGET = Path(__file__).resolve().parents[2] / "NOTICE"
HEAD = """semobridge-ext
Copyright 2026 the semobridge-ext authors
Licensed under the Apache License, Version 2.0 (see LICENSE).

The embedded CLIP and its evaluation images
===========================================

semobridge_ext/data/picto_clip.safetensors was trained by bench/picto on drawings of the icon sets listed
below; semobridge_ext/data/picto_*.png hold drawings of the sets that were held out, rendered to 48x48
pixels, with their colours reduced to 16 grays or 256 colours. Nothing else was changed. The drawings
come from the npm package {iconify} (Iconify), which states author and licence for each set.

The names and subcategories of emoji come from the npm package {emoji} (MIT,
Copyright (c) 2013 Cal Henderson). The words are split by the tokenizer of OpenAI's CLIP (MIT, Copyright
(c) 2021 OpenAI) as open_clip distributes it (MIT, Copyright (c) 2012-2021 Gabriel Ilharco, Mitchell
Wortsman, Nicholas Carlini, Rohan Taori, Achal Dave, Vaishaal Shankar, John Miller, Hongseok Namkoong,
Hannaneh Hajishirzi, Ali Farhadi, Ludwig Schmidt); its vocabulary is not part of this package.

Logos of brands are trademarks of their owners. They are contained as test images for recognition only;
no endorsement is meant in either direction.

The line of a set: name; author; licence (SPDX); number of drawings; where they come from.
"""
TERMS = """The terms that ask to be repeated
---------------------------------

MIT, for each set so marked, copyright its author named above:

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions: The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY
KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A
PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR
ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

ISC, for each set so marked, copyright its author named above:

Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is
hereby granted, provided that the above copyright notice and this permission notice appear in all copies.
THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE
INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE
FOR ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS
OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING
OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

The others by their address: Apache-2.0 https://www.apache.org/licenses/LICENSE-2.0 (see LICENSE);
CC-BY-4.0 https://creativecommons.org/licenses/by/4.0/; CC-BY-3.0
https://creativecommons.org/licenses/by/3.0/; CC0-1.0 https://creativecommons.org/publicdomain/zero/1.0/;
OFL-1.1 https://openfontlicense.org; BSD-3-Clause https://opensource.org/license/bsd-3-clause;
Unlicense https://unlicense.org.
"""


def section(title: str, counts: Counter, collections: dict) -> str:
    """One list of sets."""
    lines = [title, "-" * len(title), ""]
    for name in sorted(counts):
        entry = collections[name]
        author, licence = entry.get("author", {}), entry["license"]
        source = author.get("url") or licence.get("url", "")
        holder = f"{name} ({entry['name']}); {author.get('name', 'not named')}"
        lines.append(f"- {holder}; {licence['spdx']}; {counts[name]}; {source}")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    manifest = read_manifest(work)
    collections = json.loads((work / "iconify" / "collections.json").read_text())
    embedded = json.loads((work / "evalsets.json").read_text()).values()
    shown = {row for data in embedded for row, _, _ in data["entries"]}
    trained = Counter(manifest[row]["set"] for row in np.load(work / "train.npy"))
    parts = [
        HEAD.format(iconify=ICONIFY, emoji=EMOJI),
        section("Embedded as evaluation images", Counter(manifest[row]["set"] for row in shown), collections),
        section("Used for training (no drawing is contained)", trained, collections),
        TERMS,
    ]
    TARGET.write_text("\n".join(parts))
    print(f"{len(trained)} training sets, {sum(trained.values())} drawings; {len(shown)} drawings embedded")


if __name__ == "__main__":
    main()
