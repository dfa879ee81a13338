"""Pages in the browser, served by this program: labeling, its review, and the viewer of maps."""
