"""The explorer's pages: one module, one async function `page(explorer)` each."""
