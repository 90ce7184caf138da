"""A training's scalars as TensorBoard event files, beside the Parquet of the same."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class Board:
    """Writes to `folder`, from step `first` on: what it holds of that step and later ones counts as unwritten."""

    def __init__(self, folder: Path, first: int) -> None:
        if not first and folder.exists():
            shutil.rmtree(folder)
        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One event for all of them: an event each costs a millisecond a step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()
