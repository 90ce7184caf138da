"""The pairs that `filter` judges: those that passed `screen` and whose image is there."""

JUDGED = """
SELECT uid, text, images.*
FROM (SELECT uid, url, text FROM pairs) SEMI JOIN (SELECT uid FROM screened WHERE failures = 0) USING (uid)
    JOIN images USING (url)
WHERE status = 'ok'"""
"""A query of (uid, text, and the columns of the view `images`)."""
