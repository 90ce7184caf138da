"""Lists of urls and texts: finding the files (`files`), and reading any of them as blocks of rows (`reading`)."""
