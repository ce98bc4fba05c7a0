"""Errors that tracelab raises: what went wrong, where, what to do next.

::

    TracelabError
    ├── SourceError            a path or stream that cannot be used
    │   ├── UnknownFormatError     its content is no known export
    │   └── EmptySourceError       a folder or glob in which no export was found
    ├── StoreError             a store that is damaged, foreign, or not writable
    ├── SchemaError            a table that lacks a column or holds a wrong type
    ├── UnknownTraceError      a trace or span id that is not in the capture
    ├── ParameterError         an argument out of its range
    └── EngineError            an engine that cannot be reached or died

Bad data inside a source never raises: it becomes a row of REJECTS or of BREAKS.
"""


class TracelabError(Exception):
    """Base of all errors that tracelab raises on purpose."""


class SourceError(TracelabError):
    """A path, glob or stream cannot be used as a source."""


class UnknownFormatError(SourceError):
    """A source's content is none of the known export forms."""


class EmptySourceError(SourceError):
    """A folder or glob holds no export."""


class StoreError(TracelabError):
    """A store is damaged, of a foreign version, or cannot be written."""


class SchemaError(TracelabError):
    """A table lacks a column or holds a value of a wrong type."""


class UnknownTraceError(TracelabError):
    """A trace id or span id does not stand in the capture."""


class ParameterError(TracelabError, ValueError):
    """An argument is out of its range or not one of its words."""


class EngineError(TracelabError):
    """An execution engine cannot be reached, or died during the work."""
