"""The pairs that `filter` judges: those that passed `screen` and whose image is there."""

JUDGED = """
SELECT uid, text, images.*
FROM (SELECT uid, url, text FROM pairs) ANTI JOIN (SELECT uid FROM verdicts WHERE stage = 'screen') USING (uid)
    JOIN images USING (url)
WHERE status = 'ok'"""
"""A query of (uid, text, and the columns of the view `images`)."""
