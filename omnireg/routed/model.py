"""One model out of a package: every token runs with the weights of its modality."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)

from omnireg.backbones.alignment import EMBEDDING
from omnireg.checkpoints.loading import config_errors, quiet
from omnireg.checkpoints.tensors import TORCH_DTYPES, as_device, as_dtype
from omnireg.errors import CheckpointError, ConfigError, did_you_mean
from omnireg.package import Package
from omnireg.plugins.host import PluginHost
from omnireg.routed.backbone import build
from omnireg.routed.embedding import Head
from omnireg.routed.encoders import Encoded, Encoder
from omnireg.routed.layers import Group, Pass, Routed, Storage
from omnireg.routed.positions import count_places
from omnireg.routed.processor import OmniProcessor
from omnireg.routed.routes import Route, TextRouting, check_rule, route_of, text_route
from omnireg.routed.vocabulary import JointVocabulary
from omnireg.routed.weights import Weights

Media = Mapping[str, Mapping[str, Any]]


def load(
    package: Path | str | Package,
    *,
    storage: Storage | str = Storage.MATERIALISED,
    text_routing: TextRouting | str = TextRouting.AUTO,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    plugins: PluginHost | None = None,
    trust: bool = False,
) -> "OmniModel":
    """Return the routed model of a package (MMER's expansion, arXiv 2505.17110).

    Args:
        package: its folder.
        storage: keep a weight set for every modality in use (``materialised``, fast), or form
            weights whenever they are used (``packed``, small). Every call can choose again.
        text_routing: see :class:`TextRouting`; or a modality, whose weights all text is run with.
        dtype: to compute in; that of the package when None.
        device: where to compute. Packed weights are formed there too.
        plugins: where host layouts come from.
        trust: do not compare the package's files with the digests that were written with them,
            which reads each of them once.

    Raises:
        CheckpointError: no package, a damaged one, or one whose files were changed.
        ConfigError: no such storage, text routing, dtype or device.
    """
    place = as_device(device)
    opened = package if isinstance(package, Package) else Package(package, trust=trust)
    if not trust:
        opened.check()
    if EMBEDDING not in opened.vector:
        raise CheckpointError(f"{opened.folder} has no {EMBEDDING}: damaged")
    layouts = (plugins or PluginHost()).layouts
    stored = TORCH_DTYPES()[opened.vector[EMBEDDING].dtype]
    kind = as_dtype(dtype) if dtype else stored
    model = OmniModel(opened, JointVocabulary(opened, layouts), kind)
    model.storage = _storage(storage)
    model.text_routing = check_rule(text_routing, model.model_of)
    placed: Any = model
    placed.to(place).eval()
    return model


def _storage(storage: Storage | str) -> Storage:
    known = [str(known) for known in Storage]
    if storage not in known:
        raise ConfigError(
            f"storage: no such form {storage!r}{did_you_mean(storage, known)}: choose one of"
            f" {', '.join(known)}"
        )
    return Storage(storage)


class OmniModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A causal language model of joint ids, whose tokens are text, images, sounds or video.

    Attributes:
        package: what it was loaded from.
        vocabulary: the joint vocabulary.
        processor: turns texts and media into inputs.
        storage: how weights are kept unless a call says otherwise.
        text_routing: how text tokens are run unless a call says otherwise.
    """

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    _supports_flash_attn = True

    def __init__(self, package: Package, vocabulary: JointVocabulary, dtype: torch.dtype) -> None:
        """Load encoders; backbone weights are formed when they are used."""
        base = package.base.checkpoint
        with quiet(), config_errors(base):
            config = AutoConfig.from_pretrained(base.folder, trust_remote_code=False)
        text = deepcopy(config)
        config.vocab_size = vocabulary.size
        config.dtype = dtype
        super().__init__(config)
        self.package, self.vocabulary = package, vocabulary
        self.processor = OmniProcessor(vocabulary)
        self.model_of = {sense: model.name for sense, model in package.modalities.items()}
        self.storage, self.text_routing = Storage.MATERIALISED, str(TextRouting.AUTO)
        self._now = Pass()
        self._weights = Weights(package, dtype)
        self.encoders = nn.ModuleDict()
        for placeholder in vocabulary.placeholders.values():
            if placeholder.model.name not in self.encoders:
                self.encoders[placeholder.model.name] = Encoder(package, placeholder.model, dtype)
        with config_errors(base):
            self.text = build(text, vocabulary, self._weights, self._now, self._rotary)
            _take_generation_config(self, base.folder)

    @property
    def _rotary(self) -> nn.Module | None:
        """The rotary embedding of a host that counts in three dimensions, if there is one."""
        for encoder in self.encoders.values():
            if isinstance(encoder, Encoder) and encoder.rotary is not None:
                return encoder.rotary
        return None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        found: torch.device = self.text.model.embed_tokens.own.device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self._weights.dtype

    @property
    def materialised(self) -> list[str]:
        """The weight sets that are kept."""
        return sorted(self.text.lm_head.sets)

    def release(self) -> None:
        """Forget all weight sets; they are formed again when they are needed."""
        for module in self.modules():
            if isinstance(module, Routed | Head):
                module.sets.clear()

    # routing

    def modalities_of(self, input_ids: Tensor) -> Tensor:
        """Return the modality of every id: 0 for text, else 1 + its place in the package."""
        return self.vocabulary.modality.to(input_ids.device)[input_ids]

    def present_in(self, modality_ids: Tensor) -> Tensor:
        """Return (batch, modalities) which modalities every row has tokens of."""
        numbers = torch.arange(1, 1 + len(self.vocabulary.modalities), device=modality_ids.device)
        return (modality_ids[..., None] == numbers).any(1)

    def _groups(self, modality_ids: Tensor, present: Tensor, rule: str) -> list[Group]:
        """Group the tokens of (batch, length) modalities by route."""
        models, senses = list(self.package.models), self.vocabulary.modalities
        routes: dict[Route, list[tuple[int, int]]] = {}
        for row, seen in enumerate(present.tolist()):
            here = {self.model_of[s] for s, is_there in zip(senses, seen, strict=True) if is_there}
            of_text = text_route(rule, [m for m in models if m in here], models)
            routes.setdefault(of_text, []).append((row, 0))
            for place, sense in enumerate(senses, 1):
                if seen[place - 1]:
                    own = route_of([self.model_of[sense]])
                    routes.setdefault(own, []).append((row, place))
        # a placeholder that was generated, without anything it could stand for, is text
        of_texts = {row: n for n, pairs in enumerate(routes.values()) for row, p in pairs if not p}
        numbers = torch.tensor([[of_texts[row]] * (1 + len(senses)) for row in range(len(present))])
        for number, pairs in enumerate(routes.values()):
            for row, place in pairs:
                numbers[row, place] = number
        of_token = numbers.to(modality_ids.device).gather(1, modality_ids).flatten()
        found = (
            (route, (of_token == number).nonzero().flatten()) for number, route in enumerate(routes)
        )
        return [Group(route, _stretch(places)) for route, places in found if len(places)]

    # running

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        media: Media | None = None,
        modality_ids: Tensor | None = None,
        present: Tensor | None = None,
        text_routing: TextRouting | str | None = None,
        storage: Storage | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run tokens (batch, length), each with the weights of its modality.

        Args:
            input_ids: ids of the joint vocabulary.
            attention_mask: (batch, length so far) 0 where a row is padded.
            position_ids: (batch, length), or (3, batch, length); counted when None.
            past_key_values: what earlier tokens left behind.
            inputs_embeds: (batch, length, width) in place of ids; ``modality_ids`` then says more.
            use_cache: return ``past_key_values``.
            logits_to_keep: of how many last tokens, or of which, to return logits; 0 for all.
            media: modality → what its host's processor made of the media, one row of ids each, in
                the order of their placeholders in the batch.
            modality_ids: (batch, length); follow from ``input_ids`` when None.
            present: (batch, modalities) what the whole input has tokens of; those here when None.
            text_routing: instead of the model's.
            storage: instead of the model's.
            kwargs: for the backbone.

        Returns:
            ``CausalLMOutputWithPast``; logits are (batch, kept, size of the joint vocabulary).

        Raises:
            ConfigError: media do not fit the placeholders.
        """
        if modality_ids is None:
            if input_ids is None:
                raise ConfigError("inputs_embeds need modality_ids: which token is of what")
            modality_ids = self.modalities_of(input_ids)
        if present is None:
            present = self.present_in(modality_ids)
        rule = (
            self.text_routing if text_routing is None else check_rule(text_routing, self.model_of)
        )
        groups = self._groups(modality_ids, present, rule)
        kept = self._groups(_kept(modality_ids, logits_to_keep), present, rule)
        chosen = self.storage if storage is None else _storage(storage)
        with self._now.of(chosen, groups, kept):
            if inputs_embeds is None:
                assert input_ids is not None
                inputs_embeds, places = self._embed(input_ids, attention_mask, media or {})
                position_ids = places if position_ids is None else position_ids
            if position_ids is not None and position_ids.ndim == 3:
                self._now.positions, position_ids = position_ids, None
            return self.text(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )

    def _embed(
        self, input_ids: Tensor, attention_mask: Tensor | None, media: Media
    ) -> tuple[Tensor, Tensor | None]:
        """Return embeddings, and places in three dimensions if a host counts so."""
        embeddings = self.text.model.embed_tokens(input_ids)
        encoded = {sense: self.encode(sense, inputs) for sense, inputs in media.items()}
        for sense, found in encoded.items():
            placeholder = self.vocabulary.placeholders[sense]
            wanted = input_ids == placeholder.id
            own = found.embeddings[found.ids.to(wanted.device) == placeholder.own_id]
            if int(wanted.sum()) != len(own):
                raise ConfigError(
                    f"the text has {int(wanted.sum())} {placeholder.text} and the media of"
                    f" {sense} need {len(own)}: make both with the processor in one call"
                )
            embeddings[wanted] = own.to(embeddings.dtype)
        if self._rotary is None or not any(e.positions is not None for e in encoded.values()):
            return embeddings, None
        return embeddings, count_places(input_ids, attention_mask, encoded, self.vocabulary)

    def encode(self, modality: str, inputs: Mapping[str, Any]) -> Encoded:
        """Run media through their host's encoder and projector.

        Raises:
            ConfigError: the package takes in no such modality.
        """
        known = self.vocabulary.placeholders
        if modality not in known:
            raise ConfigError(
                f"{self.package.folder} takes in no {modality!r}{did_you_mean(modality, known)}: it"
                f" takes in {', '.join(known)}"
            )
        found: Encoded = self.encoders[known[modality].model.name](dict(inputs))
        return found

    # generating

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """See ``transformers.GenerationMixin.generate``; takes what the processor returns.

        Media are encoded once, whatever the number of beams.
        """
        ids = kwargs.pop("input_ids", inputs)
        if ids is None or kwargs.get("inputs_embeds") is not None:
            raise ConfigError("generate needs input_ids: call the model's processor first")
        ids = ids.to(self.device)
        modality_ids = self.modalities_of(ids)
        kwargs.setdefault("present", self.present_in(modality_ids))
        media = kwargs.pop("media", None)
        if media:
            chosen = kwargs.get("text_routing")
            rule = self.text_routing if chosen is None else check_rule(chosen, self.model_of)
            groups = self._groups(modality_ids, kwargs["present"], rule)
            with self._now.of(self.storage, groups, groups):
                embeddings, places = self._embed(ids, kwargs.get("attention_mask"), media)
            kwargs |= {"inputs_embeds": embeddings, "modality_ids": modality_ids}
            if places is not None:
                kwargs["position_ids"] = places
        return GenerationMixin.generate(cast(Any, self), input_ids=ids, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """See transformers; the modalities of new tokens follow from their ids."""
        found: dict[str, Any] = GenerationMixin.prepare_inputs_for_generation(
            cast(Any, self), cast(Any, input_ids), inputs_embeds=inputs_embeds, **kwargs
        )
        if found.get("inputs_embeds") is None:
            found.pop("modality_ids", None)
        return found

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        places = model_kwargs.get("position_ids")
        found: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if places is not None and places.ndim == 3:
            # a token after media stands one beyond their largest place in any dimension
            following = places.amax((0, 2)) + 1
            found["position_ids"] = torch.cat(
                [places, following[None, :, None].expand(3, -1, 1)], -1
            )
        return found


def _stretch(places: Tensor) -> Tensor | slice:
    """Return places as a slice where they follow each other: it is read without a copy."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first == len(places) - 1 else places


def _kept(modality_ids: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    if isinstance(logits_to_keep, int):
        return modality_ids[:, -logits_to_keep:] if logits_to_keep else modality_ids
    return modality_ids[:, logits_to_keep]


def _take_generation_config(model: OmniModel, folder: Path) -> None:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
