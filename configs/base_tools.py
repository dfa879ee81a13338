"""The defaults of the jobs around the method: patches in, weights in and out, comparisons."""

from ml_collections import ConfigDict

from configs import base, base_histosegnet


def prepare(images: str, masks: str, out: str, dataset: str) -> ConfigDict:
    """Labelled patches out of annotated regions."""
    return ConfigDict(
        {
            "job": "prepare",
            "images": images,  # folder of RGB regions
            "masks": masks,  # folder of their class masks, same stems
            "out": out,  # new folder, in the layout the other jobs read
            "dataset": dataset,  # shipped description or dataset.json
            "codes": {},  # class name -> values in the masks
            "excluded": (),  # values in the masks that belong to no class
            "patch": 224,  # pixels of the region
            "stride": 224,  # of the training patches, pixels
            "resize": 224,  # size of the patches written, pixels
            "min_share": 0.05,  # least share of a patch's pixels for "present"
            "shares": (0.7, 0.15, 0.15),  # of the regions: train, val, test
            "seed": 0,
            "workers": 2,
        }
    )


def convert(dataset: str, variant: str = "reference") -> ConfigDict:
    """A file of weights as a run, for the jobs that need one.

    The run gets the settings of `jobs.<method>`, of the method that the weights are of. Those of
    HistoSegNet that its weights depend on come from the .json that was exported with them.
    """
    config = ConfigDict(
        {
            "job": "convert",
            "weights": "",  # .pth, .safetensors, .params or .pth.tar
            "strict": True,  # all of them must fit; False leaves what does not at random values
            "jobs": {
                "phase1": base.phase1(dataset, variant),
                "phase2": base.phase2("unknown", variant),
                "histosegnet": base_histosegnet.histosegnet(dataset),
            },
        }
    )
    for method in ("phase2", "histosegnet"):
        config.jobs[method].data = config.jobs.phase1.data.copy_and_resolve_references()
    config.jobs.phase2.select = "last"  # there is but one
    return config


def export(run: str) -> ConfigDict:
    """A trained run for other programs."""
    return ConfigDict(
        {
            "job": "export",
            "run": run,  # workdir of a trained run, of any method
            # "pth", "safetensors": for the released PyTorch classes; "stablehlo": a program that
            # needs none of this code; "orbax": the variables as an Orbax checkpoint
            "formats": ("pth", "safetensors", "stablehlo", "orbax"),
            # the rest is of "stablehlo"
            "precision": "float32",  # "bfloat16" computes in it
            "platforms": ("cpu", "cuda", "tpu"),
            "size": 0,  # pixels, height and width of the images; 0 = that of the run's patches
        }
    )


def compare() -> ConfigDict:
    """This system's numbers beside those of the PyTorch reference, or of another machine."""
    return ConfigDict(
        {
            "job": "compare",
            "phase": 1,
            "weights": "",  # a file, or a run
            "images": "",  # folder of PNGs of one size, taken in sorted order
            "golden": "",  # recorded numbers (.npz); "" computes them with PyTorch here
            "record": "",  # .npz to write this system's numbers to
            "precision": "float32",  # "bfloat16", or "float64", where rounding hides nothing
        }
    )
