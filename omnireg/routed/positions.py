"""Where tokens stand when a host counts in time, height and width (multimodal rotary embedding)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnireg.routed.vocabulary import JointVocabulary

if TYPE_CHECKING:
    from omnireg.routed.encoders import Encoded


def count_places(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    encoded: "Mapping[str, Encoded]",
    vocabulary: JointVocabulary,
) -> Tensor:
    """Return (3, batch, length) places of tokens in time, height and width.

    Text moves one step in all three; media stand as their host counts them, from where the text
    before them ends; what follows stands one beyond their largest place. Media of hosts that do not
    count in three dimensions are counted like text.
    """
    shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    places = torch.zeros(3, *input_ids.shape, dtype=torch.long, device=input_ids.device)
    queues = {
        sense: list(_segments(found, vocabulary.placeholders[sense].own_id))
        for sense, found in encoded.items()
        if found.positions is not None
    }
    ids = {vocabulary.placeholders[sense].id: sense for sense in queues}
    for row in range(len(input_ids)):
        following, at = 0, int(shown[row].argmax())
        tokens = input_ids[row].tolist()
        while at < len(tokens):
            sense = ids.get(tokens[at])
            if sense is None:
                places[:, row, at] = following
                following, at = following + 1, at + 1
                continue
            before, segment = queues[sense].pop(0)
            first = at - before
            start = int(places[0, row, first]) if before else following
            places[:, row, first : first + segment.shape[1]] = start + segment.to(places.device)
            at = first + segment.shape[1]
            following = start + int(segment.max()) + 1
    return places


def _segments(found: "Encoded", placeholder: int) -> "list[tuple[int, Tensor]]":
    """Return, for every medium, how many tokens precede its first placeholder, and its places."""
    assert found.positions is not None
    segments = []
    for number, shown in enumerate(found.shown.bool()):
        ids = found.ids[number][shown]
        positions = found.positions[:, number][:, shown]
        before = int((ids == placeholder).nonzero()[0])
        segments.append((before, positions - positions.min()))
    return segments
