"""Augmentation of training patches: geometry, colors and stains on the device, composed patches.

`examples` decides by an example's own random numbers what is done to it; `geometry`, `color`,
`stain` and `blur` do it to one image. `composition` makes patches of several on the host.
"""
