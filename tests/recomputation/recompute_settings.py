"""Every kind of recompute setting, for models of four layers."""

from megaselect.recompute_modules import MODULES


def selective(*modules, **more):
    return {"mode": "selective", "modules": list(modules), **more}


def full(method="uniform", **more):
    return {"mode": "full", "method": method, **more}


SETTINGS = {
    "none": {},
    **{name: selective(name) for name in MODULES},
    "softmax dropout": selective("softmax", "dropout"),
    "core_attn dropout": selective("core_attn", "dropout"),
    "softmax core_attn": selective("softmax", "core_attn"),
    "softmax dropout layernorm": selective("softmax", "dropout", "layernorm"),
    "all": selective(*MODULES),
    "layernorm gelu odd": selective("layernorm", "gelu", layers="odd"),
    "uniform 1": full(),
    "uniform 2": full(num_layers=2),
    "uniform 3": full(num_layers=3),
    "uniform 4": full(num_layers=4),
    "block 1": full("block", num_layers=1),
    "block 3": full("block", num_layers=3),
    "sqrt": full("sqrt"),
    "softmax dropout even": selective("softmax", "dropout", layers="even"),
    "core_attn dropout 1-2": selective("core_attn", "dropout", layers="1-2"),
    "uniform 1 skip-first-last": full(layers="skip-first-last"),
    "uniform 2 of 0,2-3": full(num_layers=2, layers="0,2-3"),
    "block 1 of 1-2": full("block", num_layers=1, layers="1-2"),
}
