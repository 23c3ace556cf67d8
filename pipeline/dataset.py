"""What every reader asks of a DICOM data set: a value that must be there, its pixels, its clock.

Times follow PS3.5 6.2 (DA, TM, DT) and PS3.3 C.12.1.1.8 (Timezone Offset From UTC): with an offset in
the data set the result is aware, without one it is the site's local time and naive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from pipeline.errors import InputRejected


def described(dataset: Dataset) -> str:
    """The object in words that let a person find it."""
    kind = str(dataset.get("Modality", "") or "DICOM")
    series, instance = dataset.get("SeriesNumber"), dataset.get("InstanceNumber")
    where = f" series {series}" if series is not None else ""
    where += f" instance {instance}" if instance is not None else ""
    return f"{kind}{where} (SOP Instance UID {dataset.get('SOPInstanceUID', 'none')})"


def required(dataset: Dataset, keyword: str, remedy: str = "", of: Dataset | None = None) -> Any:
    """The value of an attribute that must be there and not be empty.

    of: the object to name when `dataset` is an item of one of its sequences.
    raises: InputRejected naming the attribute and the object.
    """
    try:
        value = dataset.get(keyword)
    except (ValueError, TypeError, OverflowError) as error:  # pydicom converts on access
        raise InputRejected(
            f"{keyword} of {described(of or dataset)} cannot be read: {error}",
            "Export the series again from the system that made it",
        ) from error
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        raise InputRejected(
            f"{described(of or dataset)} has no {keyword}",
            remedy or "Export the series again from the system that made it",
        )
    return value


def numbers(dataset: Dataset, keyword: str, count: int, of: Dataset | None = None) -> NDArray[np.float64]:
    """(count,): finite numbers of an attribute. raises: InputRejected naming attribute and object."""
    value = required(dataset, keyword, of=of)
    try:
        values = np.atleast_1d(np.array(value, dtype=np.float64))
    except (ValueError, TypeError):
        values = np.array([np.nan])
    if values.shape != (count,) or not np.all(np.isfinite(values)):
        raise InputRejected(
            f"{keyword} of {described(of or dataset)} is {value}, not {count} finite number(s)",
            "Export the series again from the system that made it",
        )
    return values


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Items of a sequence; none when it is absent or empty."""
    return list(dataset.get(keyword) or [])


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Values of an attribute as stripped texts; none when it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(str(v).strip() for v in (value if several else [value]))


def read_header(path: Path) -> Dataset:
    """A file's data set without pixel data. raises: InputRejected when it is not DICOM."""
    return _read(path, stop_before_pixels=True)


def read_object(path: Path) -> Dataset:
    """A file's whole data set. raises: InputRejected when it is not DICOM."""
    return _read(path, stop_before_pixels=False)


def stored_values(dataset: Dataset) -> NDArray[Any]:
    """Stored pixel values, decompressed: (rows, columns), or (frames, rows, columns).

    raises: InputRejected when the pixel data is missing, cut short, in colour, or cannot be decoded.
    """
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise InputRejected(f"{described(dataset)} is a colour image", "Send the original image")
    try:
        return np.asarray(dataset.pixel_array)
    # What a decoder raises over broken data is not ours to enumerate; the cause goes into the message.
    except (
        AttributeError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        NotImplementedError,
        OSError,
    ) as error:
        raise InputRejected(
            f"the pixel data of {described(dataset)} cannot be decoded: {error}",
            "Send the object again, uncompressed if it still fails",
        ) from error


def instant(dataset: Dataset, of: str, clock: Dataset | None = None) -> datetime | None:
    """The moment that `of`DateTime, or `of`Date with `of`Time, names; None when neither is there.

    of: ``Acquisition``, ``Series``; empty for the value of a DATETIME content item. clock: the data set
        that holds the time zone, when `dataset` is an item of a sequence.
    """
    zone = _zone(dataset if clock is None else clock)
    date, time = dataset.get(f"{of}Date"), dataset.get(f"{of}Time")
    stamp = dataset.get(f"{of}DateTime") or (f"{date}{time}" if date and time else None)
    return _moment(str(stamp), zone, f"{of} time".strip(), clock or dataset) if stamp else None


def seconds_between(start: datetime, end: datetime) -> float:
    """Seconds from `start` to `end`; a naive time is taken to be in the other's zone."""
    if start.tzinfo is None and end.tzinfo is not None:
        start = start.replace(tzinfo=end.tzinfo)
    elif end.tzinfo is None and start.tzinfo is not None:
        end = end.replace(tzinfo=start.tzinfo)
    return (end - start).total_seconds()


def _read(path: Path, stop_before_pixels: bool) -> Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except InvalidDicomError as error:
        raise InputRejected(f"{path} is not a DICOM file", "Remove it from the study's folder") from error
    except (OSError, EOFError) as error:
        raise InputRejected(f"{path} cannot be read: {error}", "Send the object again") from error


_DATE_TIME = re.compile(
    r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)(\d\d):?(\d\d)?:?(\d\d)?(?:\.(\d{1,6}))?\s*([+-]\d{4})?\s*"
)


def _moment(stamp: str, zone: timezone | None, what: str, of: Dataset) -> datetime:
    found = _DATE_TIME.fullmatch(stamp)
    try:
        if found is None:
            raise ValueError("not a date and time")
        *whole, fraction, offset = found.groups()
        year, month, day, hour, minute, second = (int(part or 0) for part in whole)
        # 60 is a leap second (PS3.5 6.2); datetime has none.
        moment = datetime(
            year, month, day, hour, minute, min(second, 59), int((fraction or "").ljust(6, "0"))
        )
    except ValueError as error:
        raise InputRejected(
            f"the {what} of {described(of)} is {stamp!r}, which is no date and time",
            "Correct the header, or export the series again",
        ) from error
    return moment.replace(tzinfo=_offset(offset) if offset else zone)


def _zone(dataset: Dataset) -> timezone | None:
    offset = str(dataset.get("TimezoneOffsetFromUTC") or "").strip()
    return _offset(offset) if re.fullmatch(r"[+-]\d{4}", offset) else None


def _offset(text: str) -> timezone:
    minutes = int(text[1:3]) * 60 + int(text[3:5])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))
