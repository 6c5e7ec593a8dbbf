"""Publish a model: its weights and where they are from, its card, a folder, and the upload."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from jinja2 import Environment, FileSystemLoader
from timm.models import save_for_hf

from harness.apps.vectors.sentence import CODE, SentenceTower
from harness.measure.cost import gflops
from harness.models.towers import OPEN_CLIP, TIMM, TRANSFORMERS, create_pretrained, split_method, split_name
from harness.records.record import DENSE, RECOVERY, Record, conditions, lacking
from harness.report.groups import group_records, sections
from harness.report.writers import markdown
from zoo.core.files import digest, fingerprint, read_facts, write_whole
from zoo.core.prompts import CosineHead
from zoo.loading.adopt import reduce
from zoo.loading.learned_files import find_predictor
from zoo.loading.open_clip import FOLDER, HUB
from zoo.loading.recovery_file import RecoveryFile, add_recovery
from zoo.loading.sizes import MODELS, SIZES, unknown_model
from zoo.loading.weights import find_clip, read_weights
from zoo.towers.vit import TimmHost

TIMM_FORMAT, SENTENCE = "timm", "sentence-transformers"
FORMATS = (TIMM_FORMAT, SENTENCE)
FILES = ("README.md", "config.json", "model.safetensors")
# What sentence-transformers' format has, too; text.safetensors where there is a text tower that doesn't ship.
SENTENCE_FILES = ("config_sentence_transformers.json", "modeling_patchrank.py", "modules.json", "text.safetensors")
FREE = ("apache-2.0", "bsd-3-clause", "mit")
UNKNOWN = "unknown"
PROVENANCE = "provenance"  # its key in config.json
_HUBS_LICENSES = (*FREE, UNKNOWN, "cc-by-nc-4.0")  # others it knows by license_name
COMPARE = "patchrank compare --model TOWER --methods METHOD --dataset NAME"


@dataclass(frozen=True, kw_only=True)
class Publishable:
    """A model in evaluation mode with its weights, and where these are from.

    Attributes:
        provenance: JSON values: metadata of the files that the weights came from, in
            ``predictors`` (one entry each), ``prompts`` and ``recovery``, and hashes of these files in
            ``digests``; with a recovery, ``tower`` is the fingerprint before it. Empty where nobody wrote that down.
    """

    vit: TimmHost
    arch: str  # timm name, without a tag
    tag: str  # of its tower's weights
    provenance: dict[str, Any]

    @property
    def dense(self) -> TimmHost:
        """The model without its reduction; shares its modules."""
        dense: TimmHost = reduce(self.vit, method=None)
        return dense

    @property
    def method(self) -> str:
        """Registered method, or ``dense``."""
        return DENSE if self.vit.reducer is None else self.vit.reducer.method

    @property
    def license(self) -> str:
        """Licence of the tower's weights, ``unknown`` if nobody said."""
        facts: Any = self.vit.pretrained_cfg
        return str(facts.get("license") or UNKNOWN)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that tuned text features tell apart; none without them."""
        facts: Any = self.vit.pretrained_cfg
        tuned = isinstance(self.vit.head, CosineHead)
        return tuple(facts.get("label_names") or ()) if tuned else ()

    def settings(self) -> dict[str, Any]:
        """Return the method's settings as records keep them, its predictor left out."""
        return {} if self.vit.reducer is None else self.vit.reducer.config.plain()

    def weights(self) -> str:
        """Return the fingerprint of the tower as records keep it: without what was tuned or recovered."""
        if RECOVERY in self.provenance:
            return str(self.provenance["tower"])
        tower = self.dense
        tower.prompts = None
        if isinstance(tower.head, CosineHead):
            tower.head = tower.head.projection
        return fingerprint(tower)

    def rows(self, records: Sequence[Record], path: Path) -> list[Record]:
        """Choose what was measured of this model, and of its dense tower beside it.

        Raises:
            ValueError: the records of ``path`` have none with these weights and settings.
        """
        weights, settings = self.weights(), self.settings()
        mine = [record for record in records if self._is_of(record, weights, settings)]
        if not mine:
            models = ", ".join(sorted({record.model for record in records})) or "nothing"
            raise ValueError(
                f"{str(path)!r} has no record of {self.arch}.{self.tag} with these weights ({weights}) and settings; "
                f"it has {models}; measure it with: {COMPARE}, or leave --records out"
            )
        same = {conditions(record) for record in mine}
        dense = [r for r in records if r.method == DENSE and conditions(r) in same]
        return [*(r for r in dense if r not in mine), *mine]

    def _is_of(self, record: Record, weights: str, settings: dict[str, Any]) -> bool:
        values = {**settings, **(self.provenance.get("digests") or {})}
        return (
            (record.model, record.tag, record.weights_sha256) == (self.arch, self.tag, weights)
            and all(record.method_config.get(key) == value for key, value in values.items())
            and (record.shots > 0) == bool(self.classes)
            and record.recovered == (RECOVERY in self.provenance)
        )


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
    options: dict[str, Any] = {} if prompts is None else {"prompts": str(prompts)}
    if predictor is not None:
        options["predictor"] = str(predictor)
    file = None if recovery is None else RecoveryFile.read(recovery)
    vit: Any = timm.create_model(f"{arch}.{tag}", pretrained=True, **options)
    provenance: dict[str, Any] = {"digests": {}}  # named as in the settings of records
    block = None if vit.reducer is None else vit.reducer.config.predictor_block(vit.depth)
    if block is not None:
        path = predictor or find_predictor(tower, tag, block).path
        provenance["predictors"] = [read_facts(path, "predictor")]
        provenance["digests"]["predictor"] = digest(path)
    if prompts is not None:
        provenance["prompts"] = read_facts(prompts, "prompts")
        provenance["digests"]["prompts"] = digest(prompts)
    model = Publishable(vit=vit.eval(), arch=arch, tag=tag, provenance=provenance)
    if file is None:
        return model
    provenance["tower"] = model.weights()
    provenance[RECOVERY] = read_facts(file.path, RECOVERY)
    provenance["digests"][RECOVERY] = digest(file.path)
    return replace(model, vit=add_recovery(vit, file).eval())


def _load_saved(name: str) -> Publishable:
    folder = Path(name.removeprefix(FOLDER))
    if name.startswith(FOLDER) and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model {name!r}: no config.json there; timm.models.save_for_hf(model, FOLDER) or "
            "patchrank push --folder FOLDER writes one"
        )
    vit = create_pretrained(name)
    if not isinstance(vit, TimmHost):
        raise ValueError(
            f"model {name!r} is {type(vit).__name__}, none that zoo.reduce made; save it by timm.models.save_for_hf("
            "zoo.reduce(model, method=METHOD, keep=RATE), FOLDER)"
        )
    facts: Any = vit.pretrained_cfg
    config = folder / "config.json"
    if name.startswith(HUB):
        repo, _, revision = name.removeprefix(HUB).partition("@")
        config = Path(str(try_to_load_from_cache(repo, "config.json", revision=revision or None)))
    provenance = json.loads(config.read_text("utf-8")).get(PROVENANCE) or {}
    arch = str(vit.__dict__["_model_args"].get("base") or facts["architecture"]).partition(".")[0]
    tag = str(facts.get("tag") or "")
    return Publishable(vit=vit.eval(), arch=arch, tag=tag, provenance=provenance)


def model_card(model: Publishable, repo: str, records: Sequence[Record], sentence: SentenceTower | None = None) -> str:
    """Write the card of a model; it says only what is recorded or computed.

    ``repo`` is ``OWNER/NAME`` on the hub; records are of the model and of its dense tower; ``sentence`` is what
    sentence-transformers opens, None in timm's format.
    """
    reducer, known, recovery = model.vit.reducer, MODELS.get(model.arch), model.provenance.get(RECOVERY)
    weights = None if known is None else SIZES[known.size].weights
    facts, uncounted = _facts(model)
    reduction = ["token reduction"] if reducer is not None else []
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True)
    environment.filters["json"] = lambda value: json.dumps(value, sort_keys=True)
    return environment.get_template("model_card.md").render(
        model=model,
        repo=repo,
        sentence=sentence,
        hub_licenses=_HUBS_LICENSES,
        free=FREE,
        clip=known is not None or "_clip_" in model.arch,
        base=f"timm/{weights}.{model.tag}" if weights else None,
        parts=reduction + ["learned tokens"] * bool(model.classes) + [RECOVERY] * bool(recovery),
        facts=facts,
        uncounted=uncounted,
        table=markdown([one.wide(summary=True) for one in sections(group_records(records))]).strip() if records else "",
        version=records[0].version if records else "",
        commits=sorted({record.git_commit for record in records if record.git_commit}),
        predicted=reducer is not None and reducer.config.predictor_block(model.vit.depth) is not None,
        predictors=model.provenance.get("predictors") or [],
        prompts=model.provenance.get("prompts"),
        recovery=recovery,
        embedded=known is not None and weights is None,
        compare=COMPARE,
    )


def _facts(model: Publishable) -> tuple[dict[str, str], str]:
    """Return the rows of the card's first table, and which operators GFLOPs lack."""
    vit = model.vit
    config: Any = vit.pretrained_cfg
    size = tuple(config["input_size"])
    like = next(vit.parameters())
    with torch.inference_mode():
        trace = vit.trace(torch.zeros(1, *size, device=like.device, dtype=like.dtype))
    patches = trace.grid[0] * trace.grid[1]
    cost = gflops(vit, size[1:], size[0])
    facts = {"input": " x ".join(map(str, size))}
    dense = ""
    if vit.reducer is not None:
        about = next(iter((sys.modules[type(vit.reducer).__module__].__doc__ or "").strip().splitlines()), "")
        dense = f" (dense: {gflops(model.dense, size[1:], size[0]).gflops:.2f})"
        facts |= {
            "method": f"{model.method}. {about}",
            "settings": f"`{json.dumps(model.settings())}`",
            "keep rate": f"{100 * trace.final_tokens / patches:.1f} %",
        }
    classes = len(model.classes)
    facts |= {
        "patch tokens": f"{trace.final_tokens} of {patches} at the end",
        "tokens leaving each block": ", ".join(map(str, trace.tokens_per_block)),
        "GFLOPs per image": f"{cost.gflops:.2f}{dense}",
        "parameters": f"{cost.params:,}",
        "output": f"logits of {classes} classes" if classes else f"{vit.num_classes} features",
    }
    return facts, lacking(cost.unsupported)


def write_folder(
    model: Publishable, folder: Path, repo: str, records: Sequence[Record], format: str = TIMM_FORMAT
) -> str:
    """Write weights, config and card, which ``local-dir:`` loads, and return the card.

    In the format of sentence-transformers these are joined by what ``SentenceTransformer`` opens.

    Raises:
        ValueError: the folder has other files, which an upload would take along; or the model's output is no vector.
        FileNotFoundError: the weights of its text tower are missing.
    """
    others = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    allowed = (*FILES, *SENTENCE_FILES) if format == SENTENCE else FILES
    if strange := sorted(set(others) - set(allowed)):
        raise ValueError(f"folder {str(folder)!r} holds {strange[0]!r}: give a new or empty one")
    sentence = None if format == TIMM_FORMAT else _sentence_tower(model)
    card = model_card(model, repo, records, sentence)
    config = {PROVENANCE: model.provenance} if model.provenance else {}
    if sentence is None:
        save_for_hf(model.vit, str(folder), model_config=config, safe_serialization=True)
    else:
        sentence.save(str(folder), config)
        about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
        modules = [{"idx": 0, "name": "0", "path": "", "type": "modeling_patchrank.SentenceTower"}]
        write_whole(folder / "config_sentence_transformers.json", json.dumps(about, indent=2).encode())
        write_whole(folder / "modules.json", json.dumps(modules, indent=2).encode())
        write_whole(folder / "modeling_patchrank.py", CODE.encode())
    write_whole(folder / "README.md", card.encode())
    return card


def _sentence_tower(model: Publishable) -> SentenceTower:
    """Join an image tower and the text tower of its weights, if there is one."""
    if model.classes:
        raise ValueError(f"--format {SENTENCE}: {model.arch} was tuned to tell classes apart; it gives no vectors")
    known = MODELS.get(model.arch)
    if known is None or model.vit.num_classes != SIZES[known.size].features:
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
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[name for name in (*FILES, *SENTENCE_FILES) if (folder / name).is_file()],
            commit_message="Upload model and card",
        )
    except Exception as error:  # the client raises what its transport does, release by release
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConnectionError(
            f"can't upload to {repo!r}: {reason} (log in with 'hf auth login' or set HF_TOKEN, "
            "where the hub can be reached; or write the files with --folder DIR and upload them "
            f"from elsewhere with 'hf upload {repo} DIR')"
        ) from error
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raise ValueError for what is no repository's name."""
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
