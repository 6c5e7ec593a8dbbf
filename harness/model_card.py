"""The card that goes with a published model; it says only what is recorded or computed."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness.cost import gflops, lacking
from harness.publishable import FREE, UNKNOWN, Publishable
from harness.records import Record
from harness.report.sections import markdown_table
from harness.variants import DENSE
from zoo.registry import MODELS
from zoo.sizes import SIZES

_PAPER = "Patch Ranking, arXiv 2409.14607"
_HUBS_LICENSES = (*FREE, UNKNOWN, "cc-by-nc-4.0")  # others it knows by license_name
_RANKED = (
    *("dataset", "split", "revision", "model", "weights", "score", "block", "window", "stride"),
    *("dtype", "approximate", "greedy"),
)


def model_card(model: Publishable, repo: str, records: Sequence[Record]) -> str:
    """Write the card of a model.

    Args:
        model: the model.
        repo: ``OWNER/NAME`` on the hub.
        records: what was measured of it and of its dense tower; none if nothing was.
    """
    parts = [
        _front_matter(model),
        f"# {repo.partition('/')[2]}\n\n{_summary(model)}",
        _facts(model),
        _usage(model, repo),
        _measured(model, records),
        _origin(model),
        _license(model),
        _limits(model),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(model: Publishable) -> str:
    task = "image-classification" if model.classes else "image-feature-extraction"
    tags = ["timm", "clip", "vision-transformer"]
    if model.method != DENSE:
        tags += ["token-reduction", model.method]
    lines = [f"license: {model.license}"]
    if model.license not in _HUBS_LICENSES:
        lines = ["license: other", f"license_name: {model.license}"]
    lines += ["library_name: timm", f"pipeline_tag: {task}"]
    if (hub := _hub_id(model)) is not None:
        lines.append(f"base_model: {hub}")
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _hub_id(model: Publishable) -> str | None:
    known = MODELS.get(model.arch)
    weights = None if known is None else SIZES[known.size].weights
    return None if weights is None else f"timm/{weights}.{model.tag}"


def _summary(model: Publishable) -> str:
    what = "learned tokens" if model.classes else ""
    if model.vit.reducer is not None:
        what = " and ".join(["token reduction", *([what] if what else [])])
    tower = f"`{model.arch}`, weights `{model.tag}`"
    return f"A CLIP image tower as a timm model: {tower}{', with ' + what if what else ''}."


def _facts(model: Publishable) -> str:
    vit = model.vit
    facts: Any = vit.pretrained_cfg
    size = tuple(facts["input_size"])
    like = next(vit.parameters())
    with torch.inference_mode():
        trace = vit.trace(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    patches = trace.grid[0] * trace.grid[1]
    cost = gflops(vit, size[1:], size[0])
    rows = {"input": " x ".join(map(str, size))}
    if vit.reducer is not None:
        rows |= {
            "method": _method(model),
            "settings": f"`{json.dumps(model.settings())}`",
            "keep rate": f"{100 * trace.final_tokens / patches:.1f} %",
        }
    rows |= {
        "patch tokens": f"{trace.final_tokens} of {patches} at the end",
        "tokens leaving each block": ", ".join(map(str, trace.tokens_per_block)),
        "GFLOPs per image": f"{cost.gflops:.2f}",
    }
    if vit.reducer is not None:
        rows["GFLOPs per image"] += f" (dense: {gflops(model.dense, size[1:], size[0]).gflops:.2f})"
    rows["parameters"] = f"{cost.params:,}"
    what = f"logits of {len(model.classes)} classes" if model.classes else "features"
    rows["output"] = f"{vit.num_classes} {what}" if not model.classes else what
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    note = "GFLOPs are 1e9 multiply-adds of the image tower, attention included, as fvcore counts."
    if told := lacking(cost.unsupported):
        note += f" {told}."
    return "\n".join(["## The model", "", "| | |", "|---|---|", *lines, "", note])


def _method(model: Publishable) -> str:
    """Say what the method is, by the first line of its module."""
    module = sys.modules[type(model.vit.reducer).__module__]
    line = (module.__doc__ or model.method).strip().splitlines()[0]
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    return f"{model.method}. {re.sub(r'arXiv ([0-9.]+[0-9])', link, line)}"


def _usage(model: Publishable, repo: str) -> str:
    result = "logits" if model.classes else "features"
    code = f"""import timm
import zoo  # registers the models

model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))
{result} = model(transform(image).unsqueeze(0))"""
    text = "`zoo` is part of the Python package clip-patchrank; timm alone doesn't know the model."
    names = ", ".join(model.classes)
    more = f"\n\nClasses, in the order of the logits: {names}." if names else ""
    return f"## Use\n\n{text}\n\n```python\n{code}\n```{more}"


def _measured(model: Publishable, records: Sequence[Record]) -> str:
    if not records:
        command = model.command()
        if command is None:
            return "## Measured\n\nNothing was measured, and no command measures these settings."
        return (
            "## Measured\n\nNothing was measured. This measures it, and `push --records "
            f"results/records.jsonl` writes it here:\n\n```sh\n{command}\n```"
        )
    commits = sorted({record.git_commit for record in records if record.git_commit})
    made = f"By clip-patchrank {records[0].version}"
    made += f", commit {', '.join(commits)}" if commits else ""
    return (
        f"## Measured\n\n{made}. Intervals are of 95 %; the difference to dense is on the same "
        f"images.\n\n{markdown_table(records, summary=True).strip()}"
    )


def _origin(model: Publishable) -> str:
    """Tell where rankings, predictor and learned tokens are from."""
    parts = []
    reducer = model.vit.reducer
    if reducer is not None and reducer.needs_predictor:
        predictors = model.provenance.get("predictors") or []
        told = [_predictor(facts) for facts in predictors]
        parts += told or ["Where the predictor is from wasn't written down."]
    if model.classes:
        prompts = model.provenance.get("prompts")
        told = [_prompts(prompts)] if prompts else []
        parts += told or ["Where the learned tokens are from wasn't written down."]
    return "\n\n".join(["## Rankings, predictor, learned tokens", *parts]) if parts else ""


def _predictor(facts: Mapping[str, Any]) -> str:
    provenance = facts.get("provenance") or {}
    recipe = json.dumps(facts.get("recipe") or {}, sort_keys=True)
    lines = [
        f"Predictor before block {facts['block']}, fitted to golden rankings of "
        f"{provenance.get('images', 'an unknown number of')} images ({_PAPER}).",
        "",
        f"- recipe: `{recipe}`",
        f"- fitted to: `{facts['model']}.{facts['tag']}`, blocks {facts.get('weights', UNKNOWN)}",
    ]
    if rankings := provenance.get("rankings"):
        heads = [key for key in _RANKED if any(one.get(key) is not None for one in rankings)]
        lines += ["", "Rankings, to learn from and to stop by:", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for one in rankings:
            cells = [str(one[key]) if one.get(key) is not None else "–" for key in heads]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _prompts(facts: Mapping[str, Any]) -> str:
    told = {k: v for k, v in facts.items() if k in ("dataset", "recipe", "provenance", "shape")}
    lines = [f"- {key}: `{json.dumps(value, sort_keys=True)}`" for key, value in told.items()]
    return "\n".join(["Learned tokens, tuned on a few labelled images.", "", *lines])


def _license(model: Publishable) -> str:
    text = f"The tower's weights are under `{model.license}`, and so is what is derived from them."
    if model.license == UNKNOWN:
        text = "Nobody wrote down under which licence the tower's weights are."
    elif model.license not in FREE:
        text += " It doesn't allow every use: read it before you use or pass on this model."
    if (hub := _hub_id(model)) is not None:
        text += f" They are those of [{hub}](https://huggingface.co/{hub})."
    return f"## Licence\n\n{text}"


def _limits(model: Publishable) -> str:
    lines = ["An image tower alone: text features come from the text tower of the same weights."]
    if model.classes:
        lines = ["It tells the classes above apart and no others."]
    if model.vit.reducer is not None:
        lines.append(
            "Dropped or merged patches are lost for later blocks, so dense tasks (segmentation, "
            "detection) get zeros at their places. Fewer multiply-adds are not time saved: that "
            "depends on batch and device."
        )
    known = MODELS.get(model.arch)
    if known is not None and SIZES[known.size].weights is None:
        lines.append(
            "A small tower for comparing methods offline; not OpenAI CLIP, and of little use else."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
