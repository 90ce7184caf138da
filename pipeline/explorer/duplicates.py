"""Groups of pictures that are one, from the view `duplicates`: the one that stays, and those that fell to it."""

from pipeline.store.sql import literal
from pipeline.store.views.duplicates import NEAR

REMEDY = (
    "Near-duplicates have not been looked for: files of the same bytes are all that is shown. Add near_duplicates = 4 "
    "(bits of 64) under [filter.rules] of the recipe and run make filter."
)
LOOKED_FOR = f"SELECT count(*) > 0 AS near FROM rules WHERE stage = 'filter' AND contains(measure, {literal(NEAR)})"
"""SQL of whether near-duplicates are among them."""
GROUPS = (
    'SELECT stays AS "group", count(*) + 1 AS pictures, count(*) OVER () AS "groups", '
    '(sum(count(*)) OVER ())::BIGINT AS fell FROM duplicates GROUP BY stays ORDER BY pictures DESC, "group" '
    "LIMIT ? OFFSET ?"
)
"""SQL of ("group", pictures, groups, fell), the largest first; parameters LIMIT, OFFSET.

`group` is the key of the picture that stays; `groups` the number of all of them, `fell` that of all the pictures that
another one stands for.
"""
MOST = 40
"""Pictures shown of a group."""
PICTURES = (
    'SELECT stays AS "group", key, distance, same_bytes FROM duplicates WHERE stays IN (FROM unnest(?)) '
    f"QUALIFY row_number() OVER (PARTITION BY stays ORDER BY same_bytes DESC, distance, key) < {MOST} "
    'ORDER BY "group", same_bytes DESC, distance, key'
)
"""SQL of ("group", key, distance, same_bytes) of those that fell in a list of groups, its parameter.

`distance` in bits of 64; files of the same bytes come first, then the nearest; at most MOST of a group, with the one
that stays.
"""
