"""What a segment may refuse: the contract's codes, and the exception that carries one."""

BAD_REQUEST = "bad_request"
KV_MISSING = "kv_missing"
KV_FULL = "kv_full"
NEXT_HOP_FAILED = "next_hop_failed"
WRONG_SEGMENT = "wrong_segment"
OVERLOADED = "overloaded"
DEADLINE_EXCEEDED = "deadline_exceeded"
INTERNAL = "internal"
FORBIDDEN = "forbidden"
NOT_RECORDED = "not_recorded"
ADAPTER_MISSING = "adapter_missing"
ADAPTER_FULL = "adapter_full"
FAILED_INSIDE = "the segment failed; its log says why"
"""What others are told of a failure that nobody foresaw: its own words may name paths."""


class SegmentError(Exception):
    """An expected failure of one request: one of the contract's codes, and a sentence with the numbers."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def refuse(message: str) -> SegmentError:
    """The exception for a request that is wrong in itself."""
    return SegmentError(BAD_REQUEST, message)
