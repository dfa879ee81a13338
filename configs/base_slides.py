"""The defaults of the jobs on whole slides; the others are in `base`."""

from ml_collections import ConfigDict

from configs import base_tuned


def segment(slides: str, phase1: str, phase2: str, variant: str = "paper") -> ConfigDict:
    """Tissue maps of whole slides."""
    return ConfigDict(
        {
            "job": "segment",
            "slides": slides,  # paths or patterns, separated by commas, or a folder of slides
            "mpp_table": "",  # CSV slide,mpp: of level 0, where the metadata does not say
            **_slide_settings(phase1, phase2, variant),
            "engine": "local",  # "ray" shares the slides out over a Ray cluster
            "probabilities": False,  # also writes the mean probability of each class
            "geojson": {
                # square micrometers: smaller regions are left out, smaller holes filled
                "min_area": 10.0,
                "simplify": 1.0,  # farthest that an outline may move, pixels; both 0: exact
                # "plain", "gzip" (compressed, about a sixth; QuPath does not open it) or "both"
                "file": "plain",
            },
            # Further files, for other programs:
            "ome_zarr": False,  # label map as OME-Zarr 0.5 labels
            "geoparquet": False,  # regions with their areas as GeoParquet
            "dicom_seg": False,  # of DICOM slides: label map as DICOM segmentation; needs highdicom
            "picture": 1200,  # longer side of the pictures in the report, pixels
            # colors of the pictures: the data set's, or "colorblind": told apart by all eyes
            "palette": "dataset",
            "preview": {
                # most tiles of the coarse map that comes first, as a share of all; 0.0 = none
                "share": 0.02,
                "min_tiles": 1000,  # slides of fewer tiles get none
                "seconds": 20.0,  # at least, from one version of its picture to the next
            },
            # highest class probability under which the area of a map counts as uncertain; needs
            # `probabilities`; 0.0 = not counted
            "confidence": 0.6,
            # Places that the report of a slide shows because they deserve a look:
            "places": {
                "per_kind": 3,  # most places of a kind; 0 = none
                # micrometers, side of the windows of hot spots: about the field of a 20x objective
                # with field number 22, which is 22 mm / 20 = 1.1 mm wide, and 1 mm2
                "hot_spot": 1000.0,
                # micrometers, side of the windows of least certain places: about a patch at 10x,
                # which is 224 pixels of 1.0 (Han et al. 2022)
                "uncertain": 250.0,
                "thumbnail": 240,  # pixels of the map, side of the pictures of places
            },
            # Slides that the index says need a look, besides those with errors or warnings:
            "attention": {
                "min_tissue": 1.0,  # square millimeters; less is little: not one window of 1 mm2
                "max_uncertain": 0.25,  # share of the area under `confidence`; more is much
                # standard deviations from the median of the slides: 3.5 of Iglewicz and Hoaglin
                # 1993, at which of 10 normal values 1.6 % count as outliers, of 30 0.4 %
                "outlier_z": 3.5,
                "min_slides": 10,  # fewer finished slides are not compared
            },
        }
    )


def _slide_settings(phase1: str, phase2: str, variant: str) -> dict:
    """What the tissue map of a slide depends on."""
    return {
        "phase1": phase1,  # run whose classifier gates each tile; "" = no gate
        "phase2": phase2,  # run of the segmentation network
        # micrometers per pixel that the networks were trained at; 0.0 = as their data set says
        "mpp": 0.0,
        **_reading(),
        "tile": 0,  # pixels, height and width; 0 = patch_size of the run `phase2`
        "stride": 0,  # pixels; 0 = the multiple of 8 just under half a tile, as in the paper
        "window": "flat",  # what a tile's pixels weigh: all alike, or "hann": its middle more
        "gate": {
            # what a closed class loses: its "probabilities" (Eq. 14) or "logits" become 0
            "mode": "logits" if variant == "reference" else "probabilities",
            "threshold": 0.1,  # a class is closed at or under this probability in phase 1
            # pixels between the windows that phase 1 classifies: a tile interpolates the log odds
            # of those around it; 0 = it classifies every tile, as in the paper
            "stride": 0,
        },
        "min_tissue_share": 0.0,  # tiles of which less is tissue are left out; 0.0 = none
        # "exact": as the method is defined, or "fast": a `gate.stride` of twice the stride where it
        # is not set; docs/slides.md has what that gains and changes
        "speed": "exact",
        # where the data set has white background:
        "white_threshold": 200,  # gray value (0-255) above which a pixel is background ...
        "white_min_area": 50,  # ... in 4-connected areas of at least so many pixels
        "batch_size": 20,  # tiles, over all devices
        # what the networks compute in: "float32", "tensorfloat32" or "bfloat16"; "" = what they
        # were trained in
        "precision": "",
        # test-time averaging of probabilities over views of each tile: "none" (1), "flips" (4), or
        # "d4" (8: also turned by 90 degrees); time grows with it
        "tta": base_tuned.TTA if variant == "tuned" else "none",
    }


def _reading() -> dict:
    """How slides are read, and where they have tissue."""
    return {
        # micrometers per pixel of level 0, wins over the metadata; 0.0 = as the metadata says
        "slide_mpp": 0.0,
        # what a pixel sees of the slide: the mean of its "area", or a "triangle" filter twice as
        # wide, which is softer (as version 0.1 did)
        "resampling": "area",
        "tissue": {
            # "detect" by color, "off": all is tissue, or a folder of masks <slide's stem>.png
            "source": "detect",
            # what masks cover where only a part of a slide was scanned: the "scanned" area, as in
            # QuPath and tissue.geojson, or the whole "slide"; "auto" decides by shape and tissue
            "mask_area": "auto",
            "threshold": "otsu",  # least saturation of tissue, "0" to "255", or "otsu"
            "closing": 50.0,  # radius in micrometers; narrower gaps in tissue are closed
            "min_tissue": 50_000.0,  # square micrometers; smaller pieces are dropped
            "min_hole": 50_000.0,  # square micrometers; smaller holes are filled
        },
    }


def sample(slides: str, out: str) -> ConfigDict:
    """Patches from slides, with quality control, to be labeled."""
    return ConfigDict(
        {
            "job": "sample",
            "slides": slides,  # paths or patterns, separated by commas, or a folder of slides
            "out": out,  # folder for the patches and their tables
            "mpp_table": "",  # CSV slide,mpp: of level 0, where the metadata does not say
            # CSV with the columns slide and patient (and split); "" = by the TCGA barcode in the
            # name of the file, else each slide is a patient
            "patients": "",
            "shares": (0.7, 0.15, 0.15),  # of the slides, by whole patients: train, val, test
            "seed": 0,  # of positions and splits
            "mpp": 1.0,  # micrometers per pixel of the patches; 1.0 = 10x, as in LUAD-HistoSeg
            "size": 224,  # pixels, height and width of a patch (Han et al. 2022)
            "layout": "random",  # or "grid": side by side, as many as there are
            "count": 800,  # patches of a slide at random positions (Han et al. 2022)
            "max_overlap": 0.25,  # share of a patch that another one may cover; 0.0 = none
            **_reading(),
            # A patch is dropped beyond these, which docs/labeling.md explains.
            "quality": {
                "max_white": 0.9,  # share of pixels that are glass
                "min_tissue": 0.05,  # share of pixels with colors of H&E
                "max_pen": 0.03,  # share of pixels with colors that are not of H&E: ink, dust
                "max_dark": 0.2,  # share of pixels in dark areas: folds, dirt
                # logarithm (base 10) of how much detail blurring again takes away
                "min_sharpness": 1.0,
                # standard deviations from the slide's median: 3.5 of Iglewicz and Hoaglin 1993
                "max_blur_z": 3.5,
                "max_stain_z": 3.0,
                "min_difference": 2.0,  # gray values from the most similar patch drawn before
            },
            "engine": "local",  # "ray" shares the slides out over a Ray cluster
        }
    )


def view(maps: str) -> ConfigDict:
    """Pages on which maps are looked at."""
    return ConfigDict(
        {
            "job": "view",
            "maps": maps,  # workdir of the job "segment"
            "slides": "",  # folder of the slides, if they have been moved since; "" = they have not
            "people": ("me",),  # who looks; each gets an address
            "host": "127.0.0.1",  # address to serve at; "0.0.0.0" = to all of the network
            "port": 8766,  # 0 = any that is free
            "hosts": (),  # further names by which browsers know this machine, such as a proxy's
            "corrections": "",  # folder for corrections of the maps; "" = they are only looked at
            # CSV with the columns slide and patient (and split), for corrections of slides whose
            # patients the data set does not tell; "" = none
            "patients": "",
            # folder for pages that need no server, instead of serving: <folder>/<map>/view.html
            "export": "",
            "export_maps": (),  # folders of the maps; () = all of the workdir
            # micrometers per pixel of the finest tiles of tissue; 0.0 = those of the slide
            "export_mpp": 0.0,
        }
    )


def compare_maps() -> ConfigDict:
    """The maps of two runs, of the same slides."""
    return ConfigDict(
        {
            "job": "compare_maps",
            "maps": ("runs/maps_a", "runs/maps_b"),  # two workdirs of the job "segment"
            "palette": "dataset",  # colors of the pictures, or "colorblind"
        }
    )


def recount() -> ConfigDict:
    """Corrected annotations as maps of slides."""
    return ConfigDict(
        {
            "job": "recount",
            "annotations": "",  # files of GeoJSON or a folder of them, named as their slides
            "map": "",  # workdir of the job "segment", or the folder of a slide in it
            "labels": (),  # pairs of label and class, ("Tumor", "TE"); "" as class = excluded
            "ignored": (),  # labels of annotations that count as not drawn; "" = without class
            # which of two annotations lies on top: the "smaller", as QuPath shows them, or what is
            # "drawn" later in the file
            "overlap": "smaller",
            "outside": "excluded",  # what is in no annotation: no class, or as in the "map"
        }
    )


def doctor(variant: str = "paper") -> ConfigDict:
    """The state of the installation and, if one is named, of a slide."""
    return ConfigDict({"job": "doctor", "slide": "", **_slide_settings("", "", variant)})
