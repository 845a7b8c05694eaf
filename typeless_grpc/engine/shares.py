"""The share of a bounded resource that one caller may hold, so that some is always left for others.

A caller may hold up to three times what it leaves free (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions
on Networking, 1998). Alone it gets three quarters; two such callers get three sevenths each; and however many there
are, a caller that holds nothing gets a slot.
"""

from __future__ import annotations

from typeless_grpc.errors import RateLimited

MAX_RATIO = 3.0  # of what a caller holds to what it leaves free
MAX_SHARE = MAX_RATIO / (1 + MAX_RATIO)


def may_hold(held: float, more: float, free: float) -> bool:
    """Whether a caller that has held may take more of what is free. A caller that holds nothing may take all of it."""
    return more <= free and (not held or held + more <= MAX_RATIO * (free - more))


def share_is_used_up(caller: str, resource: str, retry_after_s: float) -> RateLimited:
    """Return the error for a caller that holds its share of a resource."""
    return RateLimited(
        f"You hold your share of this server's {resource}; the rest is kept for others. Retry when yours are done.",
        reason="SHARE_USED_UP",
        retry_after_s=retry_after_s,
        subject=caller,
        quota=f"a share of {resource}",
    )
