"""Pages in the browser, served by this program: labeling and its review."""
