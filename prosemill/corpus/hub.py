"""The Parquet files of a Hugging Face dataset: from the hub at a pinned commit, or from a local folder of the same layout.

    source = open_hub(HubCorpus(source="hub", repository="owner/name", revision="…", configuration="plain_text"))

Ids are the file's path in the repository with `#` and the row, or in WikiText's format the article (from 0); an article that goes on in
the next file is two documents. Only Parquet is fetched, and only from the one endpoint that
huggingface_hub is configured for (`HF_ENDPOINT`, else huggingface.co); a repository is a name, never an address.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Never

from prosemill.corpus.document import Document, Source, Unit
from prosemill.corpus.files import articles_as_documents, part_of
from prosemill.corpus.folder import list_files, open_regular, real_folder
from prosemill.corpus.parquet import Part, parquet_rows
from prosemill.corpus.pieces import Piece, join_pieces, pieces_of, whole_pieces
from prosemill.corpus.splits import official_split
from prosemill.digests import sha256_of_file
from prosemill.errors import ProsemillError
from prosemill.hub import hub_errors, refuse_endpoint, refuse_wrong_name
from prosemill.params import HubCorpus


def open_hub(corpus: HubCorpus) -> Source:
    """The source of a hub section. Raises `ProsemillError` if the repository is neither a folder nor a dataset that can be listed."""
    return LocalSource(corpus) if Path(corpus.repository).expanduser().is_dir() else RemoteSource(corpus)


class _HubSource:
    """What both kinds of repository have in common."""

    def __init__(self, corpus: HubCorpus) -> None:
        self._corpus = corpus
        self._num_files = 0

    def facts(self, documents_sha256: str) -> dict[str, Any]:
        """The repository, its commit, the digest of all documents, and the licence that params give."""
        corpus = self._corpus
        return {
            "source": "hub",
            "repository": corpus.repository,
            "revision": corpus.revision,
            "configuration": corpus.configuration,
            "num_files": self._num_files,
            "sha256": documents_sha256,
            "license": corpus.license,
            "attribution": corpus.attribution,
        }


class LocalSource(_HubSource):
    """The rows of a local folder's Parquet files, in the order of their paths."""

    def __init__(self, corpus: HubCorpus) -> None:
        super().__init__(corpus)
        self._root = real_folder(corpus.repository, "repository")
        # In huggingface_hub's own cache a snapshot's files are links to the dataset's blobs, two folders up.
        boundary = self._root.parents[1] if self._root.parent.name == "snapshots" else self._root
        found = list_files(self._root, ("**/*.parquet",), boundary)
        self._names = [name for name in found if _is_chosen(name.as_posix(), corpus.configuration)]
        self._num_files = len(self._names)
        if not self._names:
            _refuse_nothing([name.as_posix() for name in found], corpus)

    def units(self) -> Sequence[Unit]:
        """Parts of large files, and small files joined."""
        repository = self._corpus.repository
        cut = whole_pieces if self._corpus.format == "wikitext" else pieces_of
        pieces = (piece for name in self._names for piece in cut(self._root, name, f"{repository}/{name}"))
        return [LocalUnit(self._corpus, self._root, joined) for joined in join_pieces(pieces)]


@dataclass(frozen=True)
class LocalUnit:
    """Some files of a local folder, or a part of one."""

    corpus: HubCorpus
    root: Path
    pieces: tuple[Piece, ...]

    def state(self) -> object:
        """Names, sizes and times of change of the files, and the part."""
        return [piece.state() for piece in self.pieces]

    def documents(self, _: Counter[str]) -> Iterator[Document]:
        """Every file's rows."""
        for piece in self.pieces:
            yield from _documents(self.corpus, self.root / piece.name, piece.name, part_of(piece))


class RemoteSource(_HubSource):
    """The rows of a dataset's Parquet files on the hub, in the order of their paths."""

    def __init__(self, corpus: HubCorpus) -> None:
        super().__init__(corpus)
        self._units = _remote_files(corpus)
        self._num_files = len(self._units)

    def units(self) -> Sequence[Unit]:
        """A file is a unit: what lies inside is not known before it is fetched."""
        return self._units


@dataclass(frozen=True, kw_only=True)
class RemoteUnit:
    """One file of the dataset, fetched into huggingface_hub's own cache when it is read."""

    corpus: HubCorpus
    name: PurePosixPath
    """Its path in the repository."""
    sha256: str | None
    """Its digest as the hub tells it, or None."""
    blob: str | None
    """The hub's name for its content."""

    def state(self) -> object:
        """What is known of the file without fetching it."""
        return [self.name.as_posix(), self.blob]

    def documents(self, _: Counter[str]) -> Iterator[Document]:
        """The file's rows."""
        path = _fetch(self.corpus, self.name)
        if self.sha256 is not None and (digest := sha256_of_file(path)) != self.sha256:
            where = f"{self.corpus.repository}/{self.name}"
            raise ProsemillError(f"{where} has the SHA-256 {digest}, not {self.sha256} as the hub says: delete {path} and try again")
        yield from _documents(self.corpus, path, self.name, None)


def _documents(corpus: HubCorpus, path: Path, name: PurePosixPath, part: Part | None) -> Iterator[Document]:
    where = f"{corpus.repository}/{name}"
    open_regular(path).close()
    split = official_split(_below(corpus.configuration, name))
    rows = parquet_rows(path, where=where, text_key=corpus.text_key, label_key=corpus.label_key, part=part)
    if corpus.format == "wikitext":
        yield from articles_as_documents((row.text for row in rows), name=name.as_posix(), split=split, where=where)
        return
    for row in rows:
        yield Document(
            document_id=f"{name}#{row.index}",
            text=row.text,
            source=name.as_posix(),
            label=row.label,
            official_split=split,
        )


def _below(configuration: str | None, name: PurePosixPath) -> PurePosixPath:
    """The path without the configuration's folders, whose names say nothing of splits."""
    return name.relative_to(configuration) if configuration else name


def _remote_files(corpus: HubCorpus) -> list[RemoteUnit]:
    if corpus.repository.startswith((".", "/", "~")):
        raise ProsemillError(f"`download.corpus.repository`: the folder {corpus.repository} does not exist")
    refuse_wrong_name(corpus.repository, "download.corpus.repository")
    if corpus.revision is None:
        raise ProsemillError("`download.corpus.revision` is missing: pin the dataset's commit, 40 hexadecimal digits of its history page")
    from huggingface_hub import HfApi, constants

    refuse_endpoint(constants.ENDPOINT)
    with hub_errors(f"dataset {corpus.repository} at {corpus.revision}"):
        siblings = HfApi().dataset_info(corpus.repository, revision=corpus.revision, files_metadata=True).siblings or []
    parquet = {sibling.rfilename: sibling for sibling in siblings if sibling.rfilename.endswith(".parquet")}
    chosen = sorted(name for name in parquet if _is_chosen(name, corpus.configuration))
    if not chosen:
        _refuse_nothing(list(parquet), corpus)
    return [
        RemoteUnit(
            corpus=corpus,
            name=PurePosixPath(name),
            sha256=getattr(parquet[name].lfs, "sha256", None),
            blob=parquet[name].blob_id,
        )
        for name in chosen
    ]


def _is_chosen(name: str, configuration: str | None) -> bool:
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/"):
        return False
    wanted = PurePosixPath(configuration).parts if configuration else ()
    return parts[: len(wanted)] == wanted and len(parts) > len(wanted) and (bool(wanted) or len(parts) == 1)


def _refuse_nothing(names: list[str], corpus: HubCorpus) -> Never:
    """Raise `ProsemillError` that no file is chosen, naming the folders that hold Parquet."""
    where = f"folder {corpus.configuration}" if corpus.configuration else "top folder"
    folders = sorted({name.rpartition("/")[0] for name in names} - {""})
    remedy = f"set `configuration` to one of {', '.join(folders[:20])}" if folders else "only Parquet is read, choose another dataset"
    raise ProsemillError(f"{corpus.repository} has no Parquet file in its {where}: {remedy}")


def _fetch(corpus: HubCorpus, name: PurePosixPath) -> Path:
    """The path of a file in huggingface_hub's own cache, fetched on first use."""
    from huggingface_hub import hf_hub_download

    with hub_errors(f"dataset {corpus.repository} at {corpus.revision}"):
        path = hf_hub_download(corpus.repository, name.as_posix(), repo_type="dataset", revision=corpus.revision)
    return Path(path).resolve()
