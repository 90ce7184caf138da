"""A store as WebDataset tars, and back: of each image `key.json` (key and n) and `key.<column>.npy`.

webdataset's own decoder reads them: `webdataset.WebDataset(urls).decode()` gives `sample["features.npy"]`. An int8
column `c` goes out as it is stored, with `c_scales.npy`. The folder's `identity.json` says what made the features.
float16 comes back exactly, int8 to the last bit of its scales.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PairmillError
from pipeline.store.atomic import digest, file_sha256, replacing, write_json
from pipeline.store.features.columns import SCALES, Column, ImageFeatures, dequantised, is_key
from pipeline.store.features.exchange.npy import parse_npy
from pipeline.store.features.exchange.published import Damage, Place, UnreadableError, read_images
from pipeline.store.features.writing import FeatureWriter
from pipeline.store.table import Shard, Table

if TYPE_CHECKING:
    from pipeline.store.features.store import FeatureStore

IDENTITY = "identity.json"
SAMPLE = "sample"
RESTORED = "00000"
MAX_SAMPLE = 1 << 28
"""Bytes: what has more is no image's features."""


def write(
    store: "FeatureStore",
    folder: Path,
    keys: Iterable[str] | None = None,
    shard_bytes: int = 1 << 30,
    name: str = "features",
) -> int:
    """Write these images (by default all) to `<name>-000000.tar` and so on in `folder`; returns how many.

    A tar is closed by the image with which it reaches `shard_bytes`. Each is whole or not there.
    """
    write_identity(store, folder)
    waiting = iter(store.keys() if keys is None else keys)
    number = count = 0
    key = next(waiting, None)
    while key is not None:
        with replacing(folder / f"{name}-{number:06d}.tar") as partial, open(partial, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                while key is not None:
                    _add(tar, store, key)
                    count += 1
                    key = next(waiting, None)
                    if tar.offset >= shard_bytes:
                        break
        number += 1
    return count


def write_identity(store: "FeatureStore", folder: Path) -> None:
    """Say in `folder` what made the store's features, where it is not said already: several may write there."""
    with suppress(PairmillError):
        if read_identity(folder) == store.identity:
            return
    write_json(folder / IDENTITY, store.identity)


def _add(tar: tarfile.TarFile, store: "FeatureStore", key: str) -> None:
    if "." in key or not is_key(key):
        raise PairmillError(f"WebDataset cannot name the image {key!r}: it ends a key at the first dot", "rename it")
    image = store.gather([key])
    n = int(image.n[0])
    members = {"json": json.dumps({"key": key, "n": n}).encode()}
    for name, stacked in image.arrays.items():
        file = io.BytesIO()
        np.save(file, stacked[0].astype(stacked.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
        members[f"{name}.npy"] = file.getvalue()
    for suffix, content in members.items():
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size, member.mode = len(content), 0o444
        tar.addfile(member, io.BytesIO(content))


def read_identity(folder: Path) -> dict[str, Any]:
    """What made the features in a folder that `write` filled. Raises PairmillError."""
    path = folder / IDENTITY
    try:
        identity = json.loads(path.read_bytes())
        for described in identity["columns"].values():
            Column.of(described)
        if "features" not in identity["columns"]:
            raise ValueError("no column of features")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PairmillError(f"{path} does not say what made the features ({error})", "bring it back") from None
    return dict(identity)


class TarFile:
    """A tar of a folder that `write` filled. A place is a sample: where its members start, and how many bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        identity = read_identity(path.parent)
        self._columns = {name: Column.of(described) for name, described in identity["columns"].items()}
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()

    def close(self) -> None:
        self._file.close()

    def places(self) -> Iterator[Place | Damage]:
        """Neighbouring members that share all before the first dot are a sample, as WebDataset has it."""
        start, key, number = 0, None, 0
        with _opened(self.path) as tar:
            for member in tar:
                here = member.name.partition(".")[0]
                if not is_key(here) or member.issparse() or member.size > MAX_SAMPLE:
                    raise tarfile.ReadError(f"the member {member.name!r} is none of ours")
                if here != key and key is not None:
                    number += 1
                    yield Place(key, number, SAMPLE, start, member.offset - start)
                    start = member.offset
                key = here
            if key is not None:
                yield Place(key, number + 1, SAMPLE, start, tar.offset - start)

    def read(self, place: Place, top_k: int) -> ImageFeatures:
        """One sample, int8 made float32 again, as many classes as there are."""
        if place.length > MAX_SAMPLE:
            raise UnreadableError(f"it has {place.length:,} bytes")
        self._file.seek(place.start)
        members: dict[str, bytes] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(self._file.read(place.length)), mode="r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    stream = tar.extractfile(member)
                    if key != place.id or stream is None:
                        raise UnreadableError(f"it holds {member.name}")
                    members[suffix] = stream.read()
        except tarfile.TarError as error:
            raise UnreadableError(f"it cannot be read ({error})") from None
        return _image(place.id, members, self._columns)


def read(paths: Iterable[Path]) -> Iterator[ImageFeatures]:
    """The images of such tars, in their order, int8 made float32 again. Raises PairmillError, naming tar and image."""
    return read_images(TarFile, paths, 0)


def restore(folder: Path, table: Table) -> None:
    """Make a table of what `write` put into `folder`: one shard. Raises PairmillError for images out of order."""
    if table.folder.exists() and any(table.folder.iterdir()) and not (table.exists or table.is_begun):
        raise PairmillError(f"{table.folder} is not empty", "name a new folder")
    identity, paths = read_identity(folder), sorted(folder.glob("*.tar"))
    if not paths or folder.resolve() == table.folder.resolve():
        raise PairmillError(f"{folder} holds no tars of features", "name the folder that they were written to")
    columns = {name: Column.of(described) for name, described in identity["columns"].items()}
    key = digest([file_sha256(path) for path in paths])
    with table.writing(key, {RESTORED: key}) as writing:
        if writing.todo:
            path = table.folder / f"{RESTORED}.parquet"
            with FeatureWriter(path, columns, identity) as writer:
                for image in read(paths):
                    try:
                        writer.add(image)
                    except ValueError as error:
                        raise PairmillError(f"{folder}: {error}", "export it again") from None
            writing.add(Shard.of(table.folder, RESTORED, key, [path.name], {"rows": writer.rows}))
        writing.commit({"identity": identity})


def _image(key: str, members: Mapping[str, bytes], columns: Mapping[str, Column]) -> ImageFeatures:
    try:
        n = json.loads(members["json"])["n"]
    except (ValueError, KeyError, TypeError):
        n = None
    if not isinstance(n, int) or n < 0:
        raise UnreadableError("its .json does not state n")
    arrays = {}
    for name, column in columns.items():
        array = _array(members, name, column.row_shape(n))
        if column.quantised:
            array = dequantised(array, _array(members, name + SCALES, column.row_shape(n)[:-1]))
        arrays[name] = array
    return ImageFeatures(key, n, arrays)


def _array(members: Mapping[str, bytes], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if f"{name}.npy" not in members:
        raise UnreadableError(f"it has no {name}.npy")
    try:
        array = parse_npy(members[f"{name}.npy"])
    except UnreadableError as error:
        raise UnreadableError(f"{name}.npy: {error}") from None
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise UnreadableError(f"its {name}.npy is {array.dtype} of the form {array.shape}, not {shape}")
    return array


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """The tar, whose members are read to the end in the block."""
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            yield tar
            raw.seek(tar.offset)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
                raise tarfile.ReadError(f"a damaged header at byte {tar.offset:,}")
    except (OSError, ValueError, tarfile.TarError) as error:
        raise PairmillError(f"{path} cannot be read: {error}", "export it again") from error
