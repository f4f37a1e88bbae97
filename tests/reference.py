"""Slow and obvious: the definitions as loops over cells, in float64 numpy."""

import numpy as np


def distances(z, metric):
    z = np.asarray(z, np.float64)
    n = len(z)
    D = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if metric == "cosine":
                norms = np.linalg.norm(z[i]) * np.linalg.norm(z[j])
                D[i, j] = 1 - z[i] @ z[j] / norms if norms > 0 else 1.0
            else:
                D[i, j] = ((z[i] - z[j]) ** 2).sum()
                if metric == "euclidean":
                    D[i, j] = D[i, j] ** 0.5
    return D


def mine(D, labels, studies, related, margin, selection, both_orders):
    """{(anchor, positive): set of negatives that may be chosen}, num_hard, num_viable."""
    allowed, num_hard, num_viable = {}, 0, 0
    n = len(labels)
    for a in range(n):
        for p in range(n):
            if a == p or (a > p and not both_orders):
                continue
            if labels[a] < 0 or labels[a] != labels[p]:
                continue
            if studies is not None and studies[a] == studies[p]:
                continue
            negatives = [
                k for k in range(n) if labels[k] >= 0 and not related[labels[a], labels[k]]
            ]
            gap = {k: D[a, p] - D[a, k] + margin for k in negatives}
            hard = [k for k in negatives if gap[k] > 0]
            num_viable += len(negatives)
            num_hard += len(hard)
            if selection == "semihard":
                hard = [k for k in hard if gap[k] < margin]
            if selection == "hardest":
                hard = [k for k in hard if gap[k] == max(gap.values())]
            if hard:
                allowed[a, p] = set(hard)
    return allowed, num_hard, num_viable


def triplet_losses(D, triplets, margin):
    return [max(0.0, D[a, p] - D[a, n] + margin) for a, p, n in triplets]


def silhouette_widths(D, labels, descendants):
    widths = []
    for i, t in enumerate(labels):
        own = [j for j, u in enumerate(labels) if j != i and (u == t or descendants[t, u])]
        inter = [
            [j for j, v in enumerate(labels) if v == u]
            for u in sorted(set(labels))
            if u != t and not descendants[t, u] and not descendants[u, t]
        ]
        means = [np.mean([D[i, j] for j in cluster]) for cluster in inter if len(cluster) > 1]
        if len(own) < 2 or not means:
            widths.append(np.nan)
            continue
        a, b = np.mean([D[i, j] for j in own]), min(means)
        widths.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return np.array(widths)


def retrieval(D, truth, known, relevant, itself):
    """Means over the query cells that have a relevant reference cell; {} where none has."""
    rows = []
    for i, label in enumerate(truth):
        others = [j for j in range(len(known)) if not (itself and i == j)]
        flags = [bool(relevant[label][known[j]]) for j in sorted(others, key=lambda j: D[i, j])]
        R = sum(flags)
        if R == 0:
            continue
        precision = [sum(flags[: i + 1]) / (i + 1) for i in range(R)]
        rows.append(
            {
                "precision_at_1": float(flags[0]),
                "r_precision": precision[R - 1],
                "map_at_r": sum(p for p, hit in zip(precision, flags, strict=False) if hit) / R,
                "mrr": 1 / (1 + flags.index(True)),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
