"""Publish a model, for timm, sentence-transformers or open_clip: weights, where they are from, a card, the upload."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader
from timm.models import save_for_hf

from harness.measure.cost import gflops
from harness.records.record import DENSE, RECOVERY, Record, lacking
from harness.report.folder import markdown
from harness.report.tables import conditions_of, group_records, sections
from zoo.core.digests import digest, fingerprint
from zoo.core.files import write_whole
from zoo.core.learned import CosineHead
from zoo.deploy.sentence_tower import CODE, SENTENCE_CODE, TEXT, SentenceTower
from zoo.loading.adopt import add_recovery, reduce
from zoo.loading.learned_files import RecoveryFile, find_predictor, read_facts
from zoo.loading.open_clip import CONFIG, save_open_clip
from zoo.loading.sizes import MODELS, SIZES, unknown_model
from zoo.loading.towers import (
    OPEN_CLIP,
    TIMM,
    TRANSFORMERS,
    create_pretrained,
    drop_classifier,
    split_method,
    split_name,
)
from zoo.loading.weights import FOLDER, HUB, OPEN_CLIP_FILES, find_clip, read_weights
from zoo.towers.vit import TimmHost

TIMM_FORMAT, SENTENCE, OPEN_CLIP_FORMAT = "timm", "sentence-transformers", "open_clip"
FORMATS = (TIMM_FORMAT, SENTENCE, OPEN_CLIP_FORMAT)  # of a published folder
FILES = ("README.md", "config.json", "model.safetensors")
OPEN_CLIP_FOLDER = ("README.md", CONFIG, OPEN_CLIP_FILES[0])
SENTENCE_FILES = ("config_sentence_transformers.json", CODE, "modules.json", TEXT)  # beside the others
FREE = ("apache-2.0", "bsd-3-clause", "mit")
UNKNOWN = "unknown"
PROVENANCE = "provenance"  # its key in config.json
_HUBS_LICENSES = (*FREE, UNKNOWN, "cc-by-nc-4.0")  # others it knows by license_name


@dataclass(frozen=True, kw_only=True)
class Publishable:
    """A model in evaluation mode with its weights and their provenance.

    Attributes:
        provenance: metadata of the files that the weights came from, as JSON values, in ``predictor``, ``prompts`` and
            ``recovery``; hashes of these files, in ``digests``, and the tower's fingerprint before a recovery, in
            ``weights``. Empty where nobody wrote that down.
    """

    vit: TimmHost
    arch: str  # timm name, without a tag
    tag: str  # of its tower's weights
    provenance: dict[str, Any]

    @property
    def method(self) -> str:
        """Registered method, or ``dense``."""
        return DENSE if self.vit.reducer is None else self.vit.reducer.method

    @property
    def license(self) -> str:
        """Licence of the tower's weights, ``unknown`` if nobody said."""
        config: Any = self.vit.pretrained_cfg
        return str(config.get("license") or UNKNOWN)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that tuned text features tell apart; none without them."""
        config: Any = self.vit.pretrained_cfg
        return tuple(config.get("label_names") or ()) if isinstance(self.vit.head, CosineHead) else ()

    @property
    def predicted(self) -> bool:
        """Whether a predictor ranks its patches."""
        return self.vit.reducer is not None and self.vit.reducer.config.predictor_block(self.vit.depth) is not None

    def find_rows(self, records: Sequence[Record], path: Path) -> list[Record]:
        """Return the records of this model and of its dense tower; ValueError if ``path`` has none of the model."""
        weights = self.provenance.get("weights") or _tower_fingerprint(self.vit)
        settings = {} if self.vit.reducer is None else self.vit.reducer.config.plain()
        settings |= self.provenance.get("digests", {})
        wanted = (self.arch, self.tag, weights, RECOVERY in self.provenance, bool(self.classes))
        rows = [
            row
            for row in records
            if (row.model, row.tag, row.weights_sha256, row.recovered, row.shots > 0) == wanted
            and settings.items() <= row.method_config.items()
        ]
        if not rows:
            lack = f"no record of {self.arch}.{self.tag} with these weights ({weights}) and settings"
            raise ValueError(f"{str(path)!r} has {lack}; measure it with `compare`, or leave --records out")
        conditions = {conditions_of(row) for row in rows}
        dense = [row for row in records if row.method == DENSE and conditions_of(row) in conditions]
        return [*(row for row in dense if row not in rows), *rows]


def _tower_fingerprint(vit: TimmHost) -> str:
    """Return the fingerprint of a tower as records keep it: without learned prompts and classifier."""
    tower: TimmHost = reduce(vit, method=None)
    tower.prompts = None
    if isinstance(tower.head, CosineHead):
        tower.head = tower.head.projection
    return fingerprint(tower)


def load_publishable(
    name: str, predictor: Path | None = None, prompts: Path | None = None, recovery: Path | None = None
) -> Publishable:
    """Load a model by one of our names, or from ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.

    Raises:
        ValueError: unknown name, or files that don't fit.
        FileNotFoundError: weights, predictor, prompts or recovery are missing.
    """
    name = name.removeprefix(TIMM)
    if name.startswith((FOLDER, HUB)):
        if predictor or prompts or recovery:
            raise ValueError(f"model {name!r} carries its weights: leave out predictor, prompts and recovery")
        return _load_saved(name)
    arch = name.partition(".")[0]
    if arch not in MODELS:
        if timm.is_model(arch) or name.startswith((OPEN_CLIP, TRANSFORMERS)):
            raise ValueError(
                f"model {name!r}: push takes names of `list`, {FOLDER}FOLDER and {HUB}OWNER/NAME; save another tower "
                "of timm by timm.models.save_for_hf(zoo.reduce(TOWER, method=METHOD, keep=RATE), FOLDER)"
            )
        raise unknown_model(name, f", or {FOLDER}FOLDER, {HUB}OWNER/NAME")
    tower, tag = split_name(split_method(name)[0])
    files = {"predictor": predictor, "prompts": prompts}
    addition = None if recovery is None else RecoveryFile.read(recovery)
    options: dict[str, Any] = {role: str(path) for role, path in files.items() if path is not None}
    vit: Any = timm.create_model(f"{arch}.{tag}", pretrained=True, **options)
    block = None if vit.reducer is None else vit.reducer.config.predictor_block(vit.depth)
    if block is not None and predictor is None:
        files["predictor"] = find_predictor(tower, tag, block).path
    weights = _tower_fingerprint(vit)
    if addition is not None:
        vit, files[RECOVERY] = add_recovery(vit, addition), addition.path
    used = {role: path for role, path in files.items() if path is not None}
    provenance: dict[str, Any] = {role: read_facts(path, role) for role, path in used.items()}
    provenance |= {"digests": {role: digest(path) for role, path in used.items()}, "weights": weights}
    return Publishable(vit=vit.eval(), arch=arch, tag=tag, provenance=provenance)


def _load_saved(name: str) -> Publishable:
    vit = create_pretrained(name)
    if not isinstance(vit, TimmHost):
        remedy = "save it by timm.models.save_for_hf(zoo.reduce(model, method=METHOD, keep=RATE), FOLDER)"
        raise ValueError(f"model {name!r} is {type(vit).__name__}, none that zoo.reduce made; {remedy}")
    pretrained: Any = vit.pretrained_cfg
    config = Path(name.removeprefix(FOLDER), "config.json")
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        config = Path(str(try_to_load_from_cache(repo, config.name, revision=revision or None)))
    provenance = json.loads(config.read_text("utf-8")).get(PROVENANCE) or {}
    arch = str(vit.__dict__["_model_args"].get("base") or pretrained["architecture"]).partition(".")[0]
    return Publishable(vit=vit.eval(), arch=arch, tag=str(pretrained.get("tag") or ""), provenance=provenance)


def model_card(
    model: Publishable,
    repo: str,
    records: Sequence[Record] = (),
    sentence: SentenceTower | None = None,
    format: str = TIMM_FORMAT,
) -> str:
    """Write the card of a model for ``OWNER/NAME`` on the hub; it says only what is recorded or computed.

    ``records`` are as of `Publishable.find_rows`; ``sentence`` is what sentence-transformers opens, None in
    other formats.
    """
    known = MODELS.get(model.arch)
    weights = None if known is None else SIZES[known.size].weights
    facts, uncounted = _describe_model(model)
    parts = sections(group_records(records)) if records else ()
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True)
    environment.filters["json"] = lambda value: json.dumps(value, sort_keys=True)
    return environment.get_template("model_card.md").render(
        model=model,
        repo=repo,
        sentence=sentence,
        open_clip=format == OPEN_CLIP_FORMAT,
        hub_licenses=_HUBS_LICENSES,
        free=FREE,
        clip=known is not None or "_clip_" in model.arch,
        base=f"timm/{weights}.{model.tag}" if weights else None,
        embedded=known is not None and weights is None,
        facts=facts,
        uncounted=uncounted,
        table=markdown([part.wide(summary=True) for part in parts]).strip(),
        records=records,
        **{role: model.provenance.get(role) for role in ("predictor", "prompts", RECOVERY)},
    )


def _describe_model(model: Publishable) -> tuple[dict[str, str], str]:
    """Return the rows of the card's first table, and which operators GFLOPs lack."""
    vit = model.vit
    config: Any = vit.pretrained_cfg
    size = tuple(config["input_size"])
    like = next(vit.parameters())
    with torch.inference_mode():
        trace = vit.trace(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    patches = trace.grid[0] * trace.grid[1]
    cost = gflops(vit, size[1:], size[0])
    rows = {"input": " x ".join(map(str, size))}
    dense = ""
    if vit.reducer is not None:
        summary = (sys.modules[type(vit.reducer).__module__].__doc__ or "").strip().partition("\n")[0]
        dense = f" (dense: {gflops(reduce(vit, method=None), size[1:], size[0]).gflops:.2f})"
        rows |= {
            "method": f"{model.method}. {summary}",
            "settings": f"`{json.dumps(vit.reducer.config.plain())}`",
            "keep rate": f"{100 * trace.final_tokens / patches:.1f} %",
        }
    classes = len(model.classes)
    rows |= {
        "patch tokens": f"{trace.final_tokens} of {patches} at the end",
        "tokens leaving each block": ", ".join(map(str, trace.tokens_per_block)),
        "GFLOPs per image": f"{cost.gflops:.2f}{dense}",
        "parameters": f"{cost.params:,}",
        "output": f"logits of {classes} classes" if classes else f"{vit.output_dim} features",
    }
    return rows, lacking(cost.unsupported)


def write_folder(
    model: Publishable, folder: Path, repo: str, records: Sequence[Record] = (), format: str = TIMM_FORMAT
) -> str:
    """Write weights, config and card, which ``local-dir:`` of timm or of open_clip loads, and return the card.

    In the format of sentence-transformers timm's files are joined by what ``SentenceTransformer`` opens.

    Raises:
        ValueError: the folder has other files, which an upload would take along; or the model's output is no vector.
        FileNotFoundError: the weights of its text tower are missing.
    """
    allowed = {SENTENCE: (*FILES, *SENTENCE_FILES), OPEN_CLIP_FORMAT: OPEN_CLIP_FOLDER}.get(format, FILES)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strange := sorted(present.difference(allowed)):
        raise ValueError(f"folder {str(folder)!r} holds {strange[0]!r}: give a new or empty one")
    sentence = _sentence_tower(model) if format == SENTENCE else None
    card = model_card(model, repo, records, sentence, format)
    config = {PROVENANCE: model.provenance} if model.provenance else {}
    if format == OPEN_CLIP_FORMAT:
        if model.arch not in MODELS or model.classes:
            raise ValueError(f"--format {format}: {model.arch} has no text tower to go with; give a name of `list`")
        save_open_clip(folder, model.vit, MODELS[model.arch], model.tag)
    elif sentence is None:
        save_for_hf(model.vit, str(folder), model_config=config, safe_serialization=True)
    else:
        sentence.save(str(folder), config)
        settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
        modules = [{"idx": 0, "name": "0", "path": "", "type": f"{Path(CODE).stem}.{SentenceTower.__name__}"}]
        write_whole(folder / "config_sentence_transformers.json", json.dumps(settings, indent=2).encode())
        write_whole(folder / "modules.json", json.dumps(modules, indent=2).encode())
        write_whole(folder / CODE, SENTENCE_CODE.encode())
    write_whole(folder / "README.md", card.encode())
    return card


def _sentence_tower(model: Publishable) -> SentenceTower:
    """Join an image tower and the text tower of its weights, if there is one."""
    if model.classes:
        raise ValueError(f"--format {SENTENCE}: {model.arch} was tuned to tell classes apart; it gives no vectors")
    drop_classifier(model.vit)  # as embed does
    known = MODELS.get(model.arch)
    if known is None or not model.vit.num_classes:
        return SentenceTower(model.vit)
    weights = None
    if SIZES[known.size].open_clip is not None:
        both = read_weights(find_clip(known.size, model.tag))
        weights = {name: value for name, value in both.items() if not name.startswith("visual.")}
    return SentenceTower(model.vit, known.size, model.tag, weights)


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Upload our files of the folder as one commit to a repository, maybe a new one; return its address.

    Raises:
        ConnectionError: no token, no network, or the hub refuses.
    """
    from huggingface_hub import HfApi  # here, so that a test's stand-in is found

    try:
        api = HfApi(library_name="clip-patchrank")
        api.create_repo(repo, private=private, exist_ok=True)
        files = [name for name in (*FILES, *SENTENCE_FILES, *OPEN_CLIP_FOLDER[1:]) if (folder / name).is_file()]
        message = "Upload model and card"
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files, commit_message=message)
    except Exception as error:  # the client raises what its transport does, release by release
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = "log in with 'hf auth login' or set HF_TOKEN, where the hub can be reached; or write the files with "
        remedy += f"--folder DIR and upload them from elsewhere with 'hf upload {repo} DIR'"
        raise ConnectionError(f"can't upload to {repo!r}: {reason} ({remedy})") from error
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raise ValueError for a name that no repository can have."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo, re.ASCII):
        raise ValueError(f"--to {repo!r}: expected OWNER/NAME, of letters, digits and - _ .")


def check_license(model: Publishable, accepted: str | None, *, uploads: bool) -> None:
    """Raise ValueError for a confirmed licence that isn't the weights', or one to confirm before an upload."""
    if accepted not in (None, model.license):
        raise ValueError(f"--accept-license {accepted!r}: the weights {model.tag!r} are under {model.license!r}")
    if uploads and model.license not in FREE and accepted is None:
        raise ValueError(
            f"the weights {model.tag!r} are under {model.license!r}, which may forbid publishing what is derived "
            f"from them: read it, and if you may, add --accept-license {model.license}"
        )
