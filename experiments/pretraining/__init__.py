"""How the weights that come with fedta were trained.

`digits` pre-trains the model of the demo on printed letters (`letters`); `cifar` a larger one on
CIFAR-10 (`cifar10`), by DINO (`dino`, `crops`) or with labels (`learners`), in a run that can be
stopped (`loop`, `figure`). Both measure frozen features (`probes`) and write a weights file
(`backbone`). `saliency` turns the larger transformer of another package into such a file.
"""
