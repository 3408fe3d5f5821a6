"""The sections and keys of a .cfg file.

Keys and defaults: darknet: parser.c, parse_net_options and the parse_ function of each layer; those
marked so are of the fork that is kept up (github.com/AlexeyAB/darknet: src/parser.c).
"""

from plinius.darknet.cfg_options import (
    COUNT,
    FLAG,
    MAX_VALUES,
    Key,
    integer,
    numbers,
    real,
    text,
)

ALIASES = {
    "network": "net",
    "conv": "convolutional",
    "deconv": "deconvolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "local_avg": "local_avgpool",
    "lrn": "normalization",
    "reorg3d": "reorg",  # fork
    "soft": "softmax",
}
UNSUPPORTED = (
    *("conv_lstm", "Gaussian_yolo", "contrastive", "implicit_add", "implicit_mul"),
    *("implicit", "empty", "silence", "history", "vsconv", "embedding"),
)
"""Sections of the fork that are not here."""

HEADS = ("yolo", "region", "detection")
"""Sections that find boxes."""

POLICIES = ("constant", "step", "steps", "exp", "poly", "random", "sigmoid")

NET_KEYS: dict[str, Key] = {
    "batch": integer(1, 1),
    "subdivisions": integer(1, 1),
    "time_steps": integer(1, 1, 1 << 16),
    "learning_rate": real(0.001, 0),
    "momentum": real(0.9, 0),
    "decay": real(0.0001, 0),
    "height": integer(0),
    "width": integer(0),
    "channels": integer(0),
    "inputs": integer(0, 0, MAX_VALUES),
    "policy": text("constant"),
    "burn_in": COUNT,
    "power": real(4, 0),
    "step": integer(1, 1, 2**53),
    "scale": real(1),
    "gamma": real(1),
    "steps": numbers(),
    "scales": numbers(),
    "max_batches": COUNT,
    # What is done to training pictures: darknet/augmentation.
    "angle": real(0, 0, 360),
    "hue": real(0, 0, 1),
    **dict.fromkeys(("aspect", "saturation", "exposure"), real(1, 0, 1e3)),
    **dict.fromkeys(("max_crop", "min_crop"), integer(None, 1, 1 << 16)),
    **dict.fromkeys(("max_ratio", "min_ratio"), real(None, 1e-3, 1e3)),
    "center": FLAG,
    "flip": integer(None, 0, 1),  # fork; always on in the original
    "resize_step": integer(32, 1, 1024),  # fork
    "adam": FLAG,
    "clip": real(0),
}

COMMON_KEYS: dict[str, Key] = {
    "truth": FLAG,
    "onlyforward": FLAG,
    "stopbackward": COUNT,  # above 1: the fork's, until so many iterations
    "dontsave": FLAG,
    "dontload": FLAG,
    "dontloadscales": FLAG,
    "numload": integer(0),
    "learning_rate": real(1, 0),
    "smooth": real(0),
}
_SIZE = integer(1, 1, 1024)
_OPTIONAL = integer(None, 1, 1024)
_OPTIONAL_COUNT = integer(None, 1)
_STRIDES = {"stride": _SIZE, "stride_x": _OPTIONAL, "stride_y": _OPTIONAL}  # _x, _y: fork
_FILTERS = {
    "filters": integer(1, 1),
    "size": _SIZE,
    "pad": FLAG,
    "padding": integer(0, 0, 1024),
    "activation": text("logistic"),
    "batch_normalize": FLAG,
}
_POOL = {**_STRIDES, "size": _OPTIONAL, "padding": integer(None, 0, 1024)}
_CLASSES = integer(20, 1, 100_000)
_RNN = {"activation": text("logistic"), "batch_normalize": FLAG, "shortcut": FLAG}
_JITTER = real(None, 0, 0.99)
_PICTURES = {"jitter": _JITTER, "random": real(0, 0, 16)}  # random above 1: fork

LAYER_KEYS: dict[str, dict[str, Key]] = {
    "convolutional": {
        **_FILTERS,
        **_STRIDES,
        "groups": integer(1, 1),
        "flipped": FLAG,
        "binary": FLAG,
        "xnor": FLAG,
        "dot": real(0),
        "dilation": _SIZE,  # fork
        "antialiasing": FLAG,  # fork
        "share_index": integer(None, -(1 << 20)),  # fork
        "assisted_excitation": real(0),  # fork
        "sway": FLAG,  # fork, as the next three
        "rotate": FLAG,
        "stretch": FLAG,
        "stretch_sway": FLAG,
        "cbn": FLAG,  # fork
        "coordconv": integer(0),  # fork
    },
    "deconvolutional": {**_FILTERS, "stride": _SIZE},
    "local": {
        "filters": integer(1, 1),
        "size": _SIZE,
        "stride": _SIZE,
        "pad": integer(0, 0, 512),
        "activation": text("logistic"),
    },
    "connected": {
        "output": integer(1, 1),
        "activation": text("logistic"),
        "batch_normalize": FLAG,
    },
    "maxpool": {
        **_POOL,
        "maxpool_depth": FLAG,  # fork
        "out_channels": integer(1, 1),  # fork
        "antialiasing": FLAG,  # fork
    },
    "avgpool": {},
    "local_avgpool": _POOL,
    "dropout": {
        "probability": real(0.5, 0, 0.999),
        "dropblock": FLAG,  # fork
    },
    "batchnorm": {},
    "normalization": {
        "alpha": real(0.0001),
        "beta": real(0.75),
        "kappa": real(1),
        "size": integer(5, 1, 1024),
    },
    "l2norm": {},
    "activation": {"activation": text("linear")},
    "softmax": {
        "groups": integer(1, 1),
        "temperature": real(1, 1e-6),
        "noloss": FLAG,
        "spatial": FLAG,
        "tree": text(None),
        "class_weights": text(None),  # not Darknet's
    },
    "logistic": {},
    "cost": {"type": text("sse"), "scale": real(1)},
    "crop": {
        "crop_height": integer(1, 1),
        "crop_width": integer(1, 1),
        "flip": FLAG,
        "noadjust": FLAG,
    },
    "route": {
        "layers": numbers(),
        "groups": integer(1, 1),  # fork
        "group_id": integer(0),  # fork
    },
    "shortcut": {
        "from": numbers(),
        "activation": text("linear"),
        "alpha": real(1),
        "beta": real(1),
        "weights_type": text("none"),  # fork
    },
    "sam": {"from": numbers(), "activation": text("linear")},  # fork
    "scale_channels": {
        "from": numbers(),
        "activation": text("linear"),
        "scale_wh": FLAG,
    },  # fork
    "upsample": {"stride": integer(2, -1024, 1024), "scale": real(1)},
    "reorg": {
        "stride": _SIZE,
        "reverse": FLAG,
        "flatten": FLAG,
        "extra": integer(0),
    },
    "rnn": {**_RNN, "output": integer(1, 1)},
    "gru": {"output": integer(1, 1), "batch_normalize": FLAG, "tanh": FLAG},
    "lstm": {"output": integer(1, 1), "batch_normalize": FLAG},
    "crnn": {
        **_RNN,
        "output_filters": integer(1, 1),
        "hidden_filters": integer(1, 1),
        "output": _OPTIONAL_COUNT,  # fork, as the rest
        "hidden": _OPTIONAL_COUNT,
        "size": _OPTIONAL,
        "pad": FLAG,
        "padding": integer(0, 0, 1024),
    },
    "region": {
        "coords": integer(4, 4, 1024),
        "classes": _CLASSES,
        "num": integer(1, 1, 1024),
        "softmax": FLAG,
        "background": FLAG,
        "max": integer(30, 1, 10_000),
        "rescore": FLAG,
        "thresh": real(0.5),
        "coord_scale": real(1),
        "object_scale": real(1),
        "noobject_scale": real(1),
        "mask_scale": real(1),
        "class_scale": real(1),
        "bias_match": FLAG,
        "tree": text(None),
        "map": text(None),
        "anchors": numbers(),
        **_PICTURES,
    },
    "yolo": {
        "classes": _CLASSES,
        "num": integer(1, 1, 1024),
        "mask": numbers(),
        "max": integer(90, 1, 10_000),
        "ignore_thresh": real(0.5),
        "truth_thresh": real(1),
        "map": text(None),
        "anchors": numbers(),
        "scale_x_y": real(1),  # fork
        "new_coords": FLAG,  # fork
        "iou_loss": text("mse"),  # fork
        **_PICTURES,
    },
    "detection": {
        "coords": integer(1, 1, 1024),
        "classes": integer(1, 1, 100_000),
        "rescore": FLAG,
        "num": integer(1, 1, 1024),
        "side": integer(7, 1, 1024),
        "softmax": FLAG,
        "sqrt": FLAG,
        "coord_scale": real(1),
        "forced": FLAG,
        "object_scale": real(1),
        "noobject_scale": real(1),
        "class_scale": real(1),
        "random": FLAG,
        "jitter": _JITTER,
    },
    "iseg": {"classes": _CLASSES, "ids": integer(32, 0, 100_000)},
}

UNUSED: dict[str, dict[str, float]] = {
    "net": {
        # Of the original, for its reading of pictures, and for its game of Go.
        **dict.fromkeys(("notruth", "random"), 0),
        **dict.fromkeys(("B1", "B2", "eps"), -1),
        # Of the fork.
        **dict.fromkeys(("mosaic", "mosaic_bound", "cutmix", "mixup", "blur", "letter_box"), 0),
        **dict.fromkeys(("gaussian_noise", "contrastive", "contrastive_jit_flip"), 0),
        **dict.fromkeys(("contrastive_color", "unsupervised", "label_smooth_eps"), 0),
        **dict.fromkeys(("attention", "adversarial_lr", "max_chart_loss"), -1),
        **dict.fromkeys(("ema_alpha", "equidistant_point", "badlabels_rejection_percentage"), -1),
        **dict.fromkeys(("num_sigmas_reject_badlabels", "optimized_memory", "loss_scale"), -1),
        **dict.fromkeys(("workspace_size_limit_MB", "dynamic_minibatch", "track"), -1),
        **dict.fromkeys(("augment_speed", "sequential_subdivisions", "try_fix_nan"), -1),
        **dict.fromkeys(("weights_reject_freq", "batches_per_cycle", "batches_cycle_mult"), -1),
        **dict.fromkeys(("init_sequential_subdivisions", "minibatch"), -1),
    },
    "crop": {"angle": 0, "saturation": 1, "exposure": 1, "shift": 0},
    "cost": {"ratio": 0, "noobj": 1, "thresh": 0},
    "region": {"log": 0, "sqrt": 0, "classfix": 0, "absolute": 0},
    "yolo": {
        **dict.fromkeys(("resize", "iou_thresh", "cls_normalizer", "iou_normalizer"), -1),
        **dict.fromkeys(("obj_normalizer", "max_delta", "label_smooth_eps", "focal_loss"), -1),
        **dict.fromkeys(("nms_kind", "beta_nms", "iou_thresh_kind", "objectness_smooth"), -1),
        **dict.fromkeys(("counters_per_class", "show_details", "embedding_layer"), -1),
        **dict.fromkeys(("delta_normalizer", "uc_normalizer", "dets_for_track"), -1),
        **dict.fromkeys(
            ("dets_for_show", "track_ciou_norm", "sim_thresh", "track_history_size"), -1
        ),
    },
    "detection": {"reorg": 0, "max": 90},
    "dropout": {
        **dict.fromkeys(("dropblock_size_rel", "dropblock_size_abs", "dropblock_size"), -1),
    },
    "shortcut": {"weights_normalization": -1},
    "rnn": {"hidden": -1, "logistic": 0},
    "local_avgpool": {},
    # bin_output only packs what the next xnor layer reads the signs of.
    "convolutional": {"angle": -1, "bin_output": 0},
}
"""Keys that are known and do nothing here, with the value that asks for nothing, or -1."""

COMMON_UNUSED: dict[str, float] = {
    **dict.fromkeys(("dont_update", "train_only_bn", "burnin_update"), -1),
    **dict.fromkeys(("keep_delta_gpu", "detach"), -1),
}

NO_EFFECT = ("adam", "clip", "binary", "dot", "spatial", "smooth", "onlyforward")
"""The original reads these and uses them nowhere in its CPU code: setting one gives a warning."""

REFUSED = {
    **dict.fromkeys(("dropblock", "antialiasing", "assisted_excitation"), 0),
    **dict.fromkeys(("sway", "rotate", "stretch", "stretch_sway", "cbn", "coordconv"), 0),
    "scale_wh": 0,
    "share_index": None,
    "weights_type": "none",
}
"""Keys that change a network in a way that is not here, with the value that does not."""
