"""How much of a bound one caller may hold, so that there is always a rest for others.

A caller may hold three times of what it leaves free (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on
Networking, 1998). Alone it has three quarters; two such callers have three sevenths each; and however many there are,
one that holds nothing finds a place.
"""

from __future__ import annotations

from typeless_grpc.errors import RateLimited

TIMES_THE_REST = 3.0
MOST_ALONE = TIMES_THE_REST / (1 + TIMES_THE_REST)


def may_hold(held: float, more: float, free: float) -> bool:
    """Whether a caller that holds so much may have more of what is free; one that holds nothing has all that fits."""
    return more <= free and (not held or held + more <= TIMES_THE_REST * (free - more))


def share_is_used_up(caller: str, what: str, retry_after_s: float) -> RateLimited:
    """The refusal. what: the caller has too many of."""
    return RateLimited(
        f"You have your share of this server's {what}; the rest is for others. Try again as yours are done.",
        reason="SHARE_USED_UP",
        retry_after_s=retry_after_s,
        subject=caller,
        quota=f"a share of {what}",
    )
