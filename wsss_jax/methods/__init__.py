"""The methods that can be trained, one module each; `contract` says what the jobs ask of it.

To add one, write a module with what `contract.Method` lists and name it in `METHODS`. Its name is
then a job, which `jobs.train` does, and its runs can be evaluated, exported and, where it gives the
logits of pixels, segment slides.
"""

METHODS = {
    "phase1": "wsss_jax.methods.phase1",
    "phase2": "wsss_jax.methods.phase2",
    "histosegnet": "wsss_jax.methods.histosegnet",
    "sccam": "wsss_jax.methods.sccam",
}
