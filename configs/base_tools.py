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


def polygons() -> ConfigDict:
    """Drawn shapes as masks, and masks as shapes to correct."""
    return ConfigDict(
        {
            "job": "polygons",
            # files of labelme or QuPath to "masks"; masks, or maps of slides, to "labelme" or
            # "geojson" (QuPath)
            "to": "masks",
            "files": "",  # paths or patterns, separated by commas, or a folder
            # images and slides, by the names of the files; "" = beside each file
            "images": "",
            "write_images": True,  # also the images of the masks, beside masks and shapes
            "dataset": "",  # shipped description, dataset.json, or labelme's labels.txt
            "classes": (),  # instead: the names of the classes, in order
            # to "masks":
            "labels": (),  # pairs of label and class, ("Tumor", "TE"); "" as class = excluded
            "ignored": (),  # labels of shapes that count as not drawn
            "background": "",  # class of pixels without shape; "" = excluded
            # which of two shapes lies on top: "drawn" later, the "smaller", or by "classes"
            "overlap": "drawn",
            "order": (),  # classes from the lowest to the uppermost; () = as in the data set
            # of slides, in GeoJSON:
            "region": "",  # label of the shapes that bound the masks; "" = the whole slide
            "mpp": 0.0,  # micrometers per pixel of the masks; 0.0 = the slide's own pixels
            # micrometers per pixel of level 0, wins over the metadata; 0.0 = as the metadata says
            "slide_mpp": 0.0,
            "mpp_table": "",  # CSV slide,mpp: of level 0, where the metadata does not say
            # to "labelme" and "geojson":
            "min_area": 16.0,  # pixels of the mask: smaller regions are left out, holes filled
            "simplify": 1.0,  # farthest that an outline may move, pixels; both 0: exact
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
            "precision": "float32",  # what it computes in; also "tensorfloat32" and "bfloat16"
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
