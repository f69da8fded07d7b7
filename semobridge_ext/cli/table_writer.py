"""Tables in place of shards: a folder of Parquet files or a Lance data set, resumed as shards are.

    FOLDER/features/part-00000.parquet   --format parquet: a file for each shard that has rows
    FOLDER/features.lance                --format lance: a fragment for each
    FOLDER/shards.jsonl                  one line a shard: number, what proves it, counts, losses, fingerprint
    FOLDER/settings.json, summary.json   as shards have them

Columns: those of the metadata, `text_features` where there are texts, and `features`: lists of fixed size,
of float16 or float32.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from semobridge_ext import _digest, _files
from semobridge_ext.cli.fingerprints import fingerprint
from semobridge_ext.cli.shard_files import SEALS, arrow, reading
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.table_seals import Seal, read_seals
from semobridge_ext.cli.tables import COLUMNS, LANCE, PARQUET, TEXT_COLUMN, lance_library

_GROUP = 1 << 14  # rows of a row group
_SUFFIXES = (".parquet", ".lance")


def add_format(parser: argparse.ArgumentParser) -> None:
    text = "parquet, lance: OUT holds a table in place of shards (default: shards)"
    parser.add_argument("--format", choices=("shards", *_WRITERS), default="shards", help=text)


def open_writer(function: str, path: Path, layout: str) -> Writer:
    """What writes a folder of shards or tables; the option says which, and never the name."""
    if path.suffix in _SUFFIXES:
        raise ValueError(
            f"{function}: OUT must be the name of a folder, got {path}; leave the ending out, and pass "
            f"--format {path.suffix[1:]} for a table in it"
        )
    return _WRITERS.get(layout, Writer)(function, path)


def with_texts(function: str, metadata: bytes, texts: np.ndarray) -> bytes:  # [n, D]
    """Records as a Parquet file, and the vectors of their texts as one column more."""
    import pyarrow

    parquet, file = arrow(function), io.BytesIO()
    table = parquet.read_table(io.BytesIO(metadata))
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(texts.reshape(-1)), texts.shape[1])
    parquet.write_table(table.append_column(TEXT_COLUMN, column), file)
    return file.getvalue()


class TableWriter(Writer):
    """A table that this run makes, or goes on with."""

    _sealed: dict[int, Seal]
    _kind: Any = None  # pyarrow.Schema of all parts

    def _whole(self, sealed: dict[int, Seal]) -> int:
        """How many shards are there as they were written; what is beyond them goes."""
        raise NotImplementedError

    def _stored_schema(self) -> Any:
        """That of the finished shards; None without any."""
        raise NotImplementedError

    def _store(self, index: int, parts: Iterator[Any]) -> Iterator[tuple[Any, dict[str, str]]]:
        """Writes tables as one shard; yields what proves it and its fingerprints before it counts, once."""
        raise NotImplementedError

    def _ready(self) -> int:
        _files.remove_leftovers(self.path)
        sealed = read_seals(self.path)
        done = 0
        while done in sealed:
            done += 1
        self._sealed = {index: sealed[index] for index in range(done)}
        done = self._whole(self._sealed)
        self._sealed = {index: sealed[index] for index in range(done)}
        self._kind = self._stored_schema()
        return done

    def add(
        self,
        index: int,
        rows: int,
        blocks: Iterable[np.ndarray],
        dtype: Any,
        metadata: bytes,
        texts: np.ndarray | None = None,
    ) -> None:
        if texts is not None and rows:
            metadata = with_texts(self.function, metadata, texts)
        table = arrow(self.function).read_table(io.BytesIO(metadata))
        facts = table.schema.metadata or {}
        inputs = int(facts.get(b"inputs", rows))
        lost = [tuple(pair) for pair in _files.parse_json(facts.get(b"corrupt", b"[]"))]
        parts = self._parts(table.replace_schema_metadata(None), blocks, dtype)
        for proof, prints in self._store(index, parts) if rows else ((None, {}),):
            self._sealed[index] = Seal(proof, rows, inputs, lost)  # type: ignore[arg-type]
            _files.append_line(self.path / SEALS, json.dumps([index, *self._sealed[index], prints]))

    def _parts(self, table: Any, blocks: Iterable[np.ndarray], dtype: Any) -> Iterator[Any]:
        """The records with their vectors, a block at a time, in one schema throughout."""
        import pyarrow

        for name in (COLUMNS[0], TEXT_COLUMN):
            kinds = [field.type for field in table.schema if field.name == name]
            texts = name == TEXT_COLUMN and len(kinds) == 1 and pyarrow.types.is_fixed_size_list(kinds[0])
            if kinds and not texts:
                raise ValueError(
                    f"{self.function}: --format {self.layout} must meet metadata without a column {name}, "
                    "got one; rename it, or write shards"
                )
        first = 0
        for block in blocks:
            flat = pyarrow.array(np.ascontiguousarray(block, dtype).reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, block.shape[1])
            part = table.slice(first, len(block)).append_column(COLUMNS[0], vectors)
            yield self._as_before(part)
            first += len(block)

    def _as_before(self, part: Any) -> Any:
        import pyarrow

        if self._kind is None:
            texts = pyarrow.string()  # of a column that held nothing yet
            kinds = ((f.name, texts if pyarrow.types.is_null(f.type) else f.type) for f in part.schema)
            self._kind = pyarrow.schema(list(kinds))
        try:
            return part.select(self._kind.names).cast(self._kind)
        except (KeyError, pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            told = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.function}: --format {self.layout} must meet shards of the same columns, got others "
                f"than in the first ({told}); write shards"
            ) from error

    # -- what was written --------------------------------------------------------------------------------

    def shards(self) -> list[int]:
        return list(self._sealed)

    def counts(self, index: int) -> tuple[int, int, list[tuple[str, str]]]:
        seal = self._sealed[index]
        return seal.inputs, seal.rows, seal.lost

    def row_total(self) -> int:
        return sum(seal.rows for seal in self._sealed.values())

    def width_before(self, index: int) -> int:
        return 0  # a shard without rows is no part of a table


class ParquetWriter(TableWriter):
    layout = "parquet"

    def _part(self, index: int) -> Path:
        return self.path / PARQUET / f"part-{index:05d}.parquet"

    def _whole(self, sealed: dict[int, Seal]) -> int:
        (self.path / PARQUET).mkdir(exist_ok=True)
        _files.remove_leftovers(self.path / PARQUET)
        for index, seal in sealed.items():
            if seal.rows:
                if not self._part(index).is_file():
                    return index
                self._check(self._part(index), str(seal.proof))
        return len(sealed)

    def _stored_schema(self) -> Any:
        index = next((index for index, seal in self._sealed.items() if seal.rows), None)
        if index is None:
            return None
        import pyarrow

        with reading(self.function, self._part(index), "Parquet"):
            found = arrow(self.function).read_schema(self._part(index)).remove_metadata()
        # Parquet has its own name for the items of a list; the same bytes come of the first one.
        again = [
            pyarrow.field(f.name, pyarrow.list_(f.type.value_type, f.type.list_size))
            if pyarrow.types.is_fixed_size_list(f.type) and f.name in (COLUMNS[0], TEXT_COLUMN) else f
            for f in found
        ]  # fmt: skip
        return pyarrow.schema(again)

    def _store(self, index: int, parts: Iterator[Any]) -> Iterator[tuple[Any, dict[str, str]]]:
        parquet, path, first = arrow(self.function), self._part(index), next(parts)
        vectors = COLUMNS[0], TEXT_COLUMN  # which repeat nothing
        plain = [name for name in first.column_names if name not in vectors]
        with _files.replaced(path) as file:
            with parquet.ParquetWriter(file, first.schema, use_dictionary=plain) as writer:
                for part in chain([first], parts):
                    writer.write_table(part, _GROUP)
            file.flush()
            yield _digest.file_digest(file.name), {path.name: fingerprint(Path(file.name))}


class LanceWriter(TableWriter):
    """Each shard is a commit; one that shards.jsonl does not know is taken back."""

    layout = "lance"
    _set: Any = None

    @property
    def _place(self) -> Path:
        return self.path / LANCE

    def _library(self) -> Any:
        lance = lance_library(self.function, f"write {self._place}")
        # At every fork: decoding processes never touch it.
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        return lance

    def _whole(self, sealed: dict[int, Seal]) -> int:
        lance, proofs = self._library(), [seal.proof for seal in sealed.values() if seal.rows]
        if not proofs:  # nothing, or a commit that was killed before its line
            shutil.rmtree(self._place, ignore_errors=True)
            return len(sealed)
        if not self._place.is_dir():
            return next(index for index, seal in sealed.items() if seal.rows)
        with reading(self.function, self._place, "Lance"):
            version = int(proofs[-1]["version"])
            self._set = lance.dataset(str(self._place), version=version)
            digests = {str(name): str(digest) for proof in proofs for name, digest in proof["files"].items()}
            if self._set.latest_version != version:
                self._set.restore()
                self._set = lance.dataset(str(self._place))
        for name, digest in digests.items():
            self._check_file(self._place / "data" / name, digest)
        return len(sealed)

    def _check_file(self, path: Path, digest: str) -> None:
        if not path.is_file() or _digest.file_digest(path) != digest:
            raise ValueError(
                f"{self.function}: {path} must hold what was written, got other bytes; delete "
                f"{self._place}, and the same command makes it again"
            )

    def _stored_schema(self) -> Any:
        return None if self._set is None else self._set.schema.remove_metadata()

    def _files(self) -> set[str]:
        fragments = [] if self._set is None else self._set.get_fragments()
        return {file.path for fragment in fragments for file in fragment.data_files()}

    def _store(self, index: int, parts: Iterator[Any]) -> Iterator[tuple[Any, dict[str, str]]]:
        import pyarrow

        failed: list[BaseException] = []

        def batches() -> Iterator[Any]:
            try:
                for part in chain([first], parts):
                    yield from part.to_batches()
            except BaseException as error:  # Lance would tell it as one of its own
                failed.append(error)
                raise

        lance, before, first = self._library(), self._files(), next(parts)
        reader = pyarrow.RecordBatchReader.from_batches(first.schema, batches())
        mode = "create" if self._set is None else "append"
        try:
            self._set = lance.write_dataset(reader, str(self._place), mode=mode)
        except BaseException as error:
            if failed and failed[0] is not error:
                raise failed[0] from None
            raise
        new = sorted(self._files() - before)
        paths = {name: self._place / "data" / name for name in new}
        files = {name: _digest.file_digest(path) for name, path in paths.items()}
        prints = {path.name: fingerprint(path) for path in paths.values()}
        yield {"version": self._set.version, "files": files}, prints


_WRITERS: dict[str, type[Writer]] = {"parquet": ParquetWriter, "lance": LanceWriter}
