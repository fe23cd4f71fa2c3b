"""Test-time registers: appended tokens that take over the outliers (Jiang et al., NeurIPS 2025).

A few hidden units in the first half of a ViT write the large norm into outlier patches. Their
activation is given to appended tokens instead ("Vision Transformers Don't Need Trained Registers",
Sec. 4; nickjiang2378/test-time-registers). ``tools/find_registers.py`` finds the units.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import torch
from torch import Tensor

from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError, unknown_choice
from sfp.options import Range, check_type

if TYPE_CHECKING:
    from sfp.clip.clip import FrozenCLIP

SHIPPED = Path(__file__).with_name("register_neurons.json")
Neurons = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Registers:
    """Appended tokens, and the hidden units whose activation they take over.

    On the hidden units H^l of a block's MLP, S the chosen ones: registers get ``scale`` times one
    value for all of S, that of largest size over all tokens; patches get 0; the class token keeps
    its own. Statistics are per image.

    Args:
        neurons: hidden units (from 0) by 1-based block, or a file of ``tools/find_registers.py``;
            the shipped file if None.
        count: how many tokens are appended.
        value: "joint", one value for all chosen units of a block, as the authors' code; or
            "per_neuron", the largest activation of each by itself, 0 on all other tokens, as the
            paper's Algorithm 2.
        patches: of the chosen units on patches: "zero"; their "mean"; "only_outliers", those above
            mean + std become the mean; "same", untouched.
        scale: of the registers' value; or one number for each register, which then take their
            values in turn, each after those before were written.
    """

    neurons: Mapping[int, Sequence[int]] | str | os.PathLike | None = None
    count: Annotated[int, Range(1)] = 1
    value: Literal["joint", "per_neuron"] = "joint"
    patches: Literal["zero", "mean", "only_outliers", "same"] = "zero"
    scale: float | Sequence[float] = 1.0

    @classmethod
    def of_option(cls, option: int | Mapping[str, Any], clip: FrozenCLIP) -> Registers | None:
        """From a method's option: their number, 0 for none, or a dict of arguments.

        Raises:
            SFPError: an unknown argument or a wrong value, no units known for these weights, or
                blocks or units that they lack.
        """
        given = dict(option) if isinstance(option, Mapping) else dict(count=option)
        if given.get("count") == 0:
            return None
        _check_arguments(given)
        if not isinstance(given.get("neurons"), Mapping):
            given["neurons"] = read_neurons(given.get("neurons") or SHIPPED, clip)
        return cls.of_blocks(given, clip.trunk.layers, clip.trunk.blocks[0].hidden_width)

    @classmethod
    def of_blocks(cls, given: Mapping[str, Any], layers: int, hidden: int) -> Registers:
        """From arguments with their neurons, for a ViT of so many blocks and hidden units.

        Raises:
            SFPError: see ``of_option``.
        """
        _check_arguments(given)
        found = cls(**{**given, "neurons": _checked(given["neurons"], layers, hidden)})
        if not isinstance(found.scale, (int, float)) and len(found.scale) != found.count:
            raise SFPError(
                f"scale of registers has {len(found.scale)} numbers for {found.count} tokens;"
                " give one for each, or one number."
            )
        if found.value == "per_neuron" and found.patches != "zero":
            raise SFPError(
                f"patches of registers is {found.patches!r}, but value='per_neuron' sets all other"
                " tokens to 0; leave one of them out."
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Its arguments as they stand, for results."""
        return asdict(self)

    @property
    def hook(self) -> Hook:
        """Edits the hidden units of the chosen blocks."""
        return Hook(self._edit, tuple(self.neurons), point="neurons")

    def _edit(self, state: LayerState) -> Tensor:
        return self.edit(state.hidden, self.neurons[state.layer], state.rows)

    def edit(self, hidden: Tensor, units: Sequence[int], patches: slice) -> Tensor:
        """Hidden units (B, T, M) of class token, the patches in their rows, registers; the chosen
        ones edited in place.
        """
        columns = torch.tensor(units, device=hidden.device)
        chosen = hidden[:, :, columns]
        if self.value == "per_neuron":
            largest = chosen.amax(1, keepdim=True)
            chosen[:, : patches.stop] = 0
            scales = torch.as_tensor(self.scale, device=hidden.device).reshape(-1, 1)
            chosen[:, patches.stop :] = (scales * largest).to(hidden.dtype)
        else:
            self._write_joint(chosen, patches)
        hidden[:, :, columns] = chosen
        return hidden

    def _write_joint(self, chosen: Tensor, patches: slice) -> None:
        """The edit of the authors' code on the chosen units (B, T, K)."""
        registers = chosen[:, patches.stop :]
        if isinstance(self.scale, (int, float)):
            registers[:] = self.scale * _largest(chosen)
        else:
            for place, scale in enumerate(self.scale):
                registers[:, place : place + 1] = scale * _largest(chosen)
        of_patches = chosen[:, patches]
        if self.patches == "zero":
            of_patches[:] = 0
        elif self.patches != "same":
            mean = of_patches.mean(1, keepdim=True)
            high = self.patches == "mean" or of_patches > mean + of_patches.std(1, keepdim=True)
            of_patches[:] = mean if high is True else torch.where(high, mean, of_patches)


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Raises SFPError for an unknown argument of ``Registers`` or a value of another type."""
    hints = get_type_hints(Registers, include_extras=True)
    known = {field.name: field.default for field in fields(Registers)}
    for name, value in given.items():
        if name not in known:
            raise unknown_choice("argument of registers", name, known)
        check_type(f"{name} of registers", value, hints[name], known[name])


def _largest(chosen: Tensor) -> Tensor:
    """The entry of largest size of each image, (B, 1, 1), the negative one among equals."""
    most, least = chosen.amax((1, 2), keepdim=True), chosen.amin((1, 2), keepdim=True)
    return torch.where(most > -least, most, least)


def read_neurons(file: str | os.PathLike, clip: FrozenCLIP) -> dict[int, list[int]]:
    """The chosen units by block of a frozen CLIP, from a file that is keyed by fingerprints.

    Raises:
        SFPError: no such file, another content, or no entry for these weights.
    """
    hint = "find them with tools/find_registers.py and name its file in registers=dict(neurons=...)"
    entries = read_entries(Path(file))
    if clip.fingerprint not in entries:
        raise SFPError(
            f"{Path(file).name} has no register neurons of these weights ({clip.name},"
            f" {clip.pretrained}, SHA-256 {clip.fingerprint[:12]}...); {hint}."
        )
    try:
        neurons = entries[clip.fingerprint]["neurons"]
        return {int(layer): list(units) for layer, units in neurons.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SFPError(f"{file} is no file of register neurons ({error!r}); {hint}.") from error


def read_entries(file: Path) -> dict[str, Any]:
    """All entries of a file of register neurons by the fingerprint of their weights.

    Raises:
        SFPError: it can't be read, or holds something else.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SFPError(
            f"The file of register neurons {file} can't be read ({error});"
            " make one with tools/find_registers.py."
        ) from error
    if not isinstance(entries, dict):
        raise SFPError(f"{file} is no file of register neurons; tools/find_registers.py makes one.")
    return entries


def _checked(neurons: Neurons, layers: int, hidden: int) -> dict[int, list[int]]:
    """Units by block, ascending; raises SFPError for blocks or units that there are not."""
    found: dict[int, list[int]] = {}
    for layer, units in neurons.items():
        listed = isinstance(units, Sequence) and not isinstance(units, str) and len(units)
        whole = listed and all(type(u) is int and 0 <= u < hidden for u in units)
        if not str(layer).isdecimal() or not 1 <= int(layer) < layers or not whole:
            raise SFPError(
                f"neurons of registers has {layer!r}: {units!r}; give blocks from 1 to"
                f" {layers - 1}, each with a list of hidden units from 0 to {hidden - 1}."
            )
        found[int(layer)] = sorted(set(units))
    return dict(sorted(found.items()))
