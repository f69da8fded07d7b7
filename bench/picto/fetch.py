"""Fetch the two npm packages the embedded CLIP is made from, at pinned versions.

`python bench/picto/fetch.py --work DIR` leaves DIR/iconify/{json/,collections.json} (the drawings and
their licences) and DIR/emoji.json (names and subcategories of the emoji). Uses the `npm` client as
the machine has it configured; what is already there is kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tarfile
from pathlib import Path

ICONIFY = "@iconify/json@2.2.535"
EMOJI = "emoji-datasource-google@15.1.2"


def pack(spec: str, work: Path) -> Path:
    """Download one package with `npm pack` and return the archive's path."""
    name = subprocess.run(
        ["npm", "pack", "--silent", spec], cwd=work, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    return work / name


def extract(archive: Path, members: tuple[str, ...], target: Path) -> None:
    """Unpack the members with one of these path prefixes into target, without their `package/`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.removeprefix("package/")
            if member.isfile() and path.startswith(members):
                out = target / path
                out.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(out, "wb") as sink:
                    shutil.copyfileobj(source, sink)


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work folder, about 2 GB are needed")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "iconify" / "collections.json").exists():
        extract(pack(ICONIFY, work), ("json/", "collections.json"), work / "iconify")
    if not (work / "emoji.json").exists():
        extract(pack(EMOJI, work), ("emoji.json",), work)
    print(f"ready: {len(list((work / 'iconify' / 'json').glob('*.json')))} icon sets")


if __name__ == "__main__":
    main()
