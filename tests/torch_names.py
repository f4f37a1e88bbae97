"""Recorded torch state dicts as trees of variables, for comparison."""

import re


def network_variables(recorded, which):
    """`{encoder,decoder}.WHICH.network.*` of a fixture as params and batch_stats.

    A hidden layer of torch is a list of modules: linear, norm and PReLU are its last three.
    """
    variables = {"params": {}, "batch_stats": {}}
    for part, last in (("encoder", "latent"), ("decoder", "output")):
        params, stats = {}, {}
        layers: dict = {}
        for name in recorded:
            if match := re.fullmatch(rf"{part}\.{which}\.network\.(\d+)\.(?:(\d+)\.)?(\w+)", name):
                layer, module, leaf = match.groups()
                layers.setdefault(int(layer), {}).setdefault(int(module or 0), {})[leaf] = recorded[
                    name
                ]
        for i, modules in layers.items():
            if i == max(layers):
                params[last] = {"kernel": modules[0]["weight"].T, "bias": modules[0]["bias"]}
                continue
            linear, norm, act = (modules[j] for j in sorted(modules))
            params[f"hidden_{i}"] = {
                "linear": {"kernel": linear["weight"].T, "bias": linear["bias"]},
                "norm": {"scale": norm["weight"], "bias": norm["bias"]},
                "activation": {"negative_slope": act["weight"][0]},
            }
            stats[f"hidden_{i}"] = {
                "norm": {"mean": norm["running_mean"], "var": norm["running_var"]}
            }
        variables["params"][part], variables["batch_stats"][part] = params, stats
    return variables
