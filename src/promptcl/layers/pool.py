"""Updates of full rank whose unused directions pass from task to task (E2-LoRA).

L blocks, o outputs, i inputs, R rank, C columns of one task.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from promptcl.backbone import Backbone, Insert, Matrix, Weight
from promptcl.layers.lora import TokenMoments, matrix, parts_of
from promptcl.layers.merged import Merged

_STEP = 1e-5  # by which the share of energy that tasks keep is lowered until they fit


class UpdatePool(nn.Module):
    """W + B A for one linear layer of each block; a column of B and its row of A belong to one task.

    The first task trains both; later ones only rows of A, for the columns that earlier tasks give up.
    """

    kept_LRi: Tensor
    owner_LR: Tensor
    energy_LR: Tensor

    def __init__(self, blocks: int, size_out: int, size_in: int, rank: int, generator: torch.Generator) -> None:
        """Draw A as nn.Linear does (Kaiming uniform); B is zero."""
        super().__init__()
        down_LRi = torch.empty(blocks, rank, size_in).uniform_(-(size_in**-0.5), size_in**-0.5, generator=generator)
        self.down_LRi, self.up_LoR = nn.Parameter(down_LRi), nn.Parameter(torch.zeros(blocks, size_out, rank))
        self.register_buffer("kept_LRi", torch.zeros(blocks, rank, size_in))
        self.register_buffer("owner_LR", torch.zeros(blocks, rank, dtype=torch.long))
        self.register_buffer("energy_LR", torch.zeros(blocks, rank))
        self._merged, self._columns = Merged(), Merged()

    def kept(self, backbone: Backbone, name: Matrix) -> list[Tensor]:
        """W + B A [o, i] of each block, W its layer `name`, for what ended tasks keep; computed once a task."""
        weights = [parts_of(backbone, layer, name) for layer in range(len(self.owner_LR))]

        def made() -> list[Tensor]:
            updates = zip(weights, self.up_LoR, self.kept_LRi, strict=True)
            return [torch.addmm(torch.cat(parts), up_oR, rows_Ri) for parts, up_oR, rows_Ri in updates]

        return self._merged.get(made, [self.up_LoR, self.kept_LRi, *(part for parts in weights for part in parts)])

    def trained(self, layer: int, task: int) -> Tensor:
        """B A [o, i] of the rows of A that `task` trains; in the first task those are all."""
        if task == 0:
            return self.up_LoR[layer] @ self.down_LRi[layer]
        columns = self.columns(task)[layer]
        return self.up_LoR[layer][:, columns] @ self.down_LRi[layer][columns]

    def columns(self, task: int) -> list[Tensor]:
        """Of each block the numbers of the columns that belong to a task, the newest one."""
        return self._columns.get(lambda: [(own_R == task).nonzero()[:, 0] for own_R in self.owner_LR], [self.owner_LR])

    @torch.no_grad()
    def begin(self, task: int) -> None:
        """Hand the columns that earlier tasks give up to a task, and start its rows of A from zero; not for the first.

        Every earlier task keeps as many columns as hold a common share of its energy, the largest share with which
        they leave the new task one part in as many as there are tasks with it.
        """
        rank = self.owner_LR.shape[1]
        for layer in range(len(self.owner_LR)):
            owner_R, energy_R = self.owner_LR[layer], self.energy_LR[layer]
            own = [(owner_R == old).nonzero()[:, 0] for old in range(task)]
            shares = [energy_R[columns] for columns in own if len(columns)]
            ranks = iter(kept_ranks(shares, rank * task // (task + 1)))
            for columns in own:
                if len(columns):
                    gone = columns[next(ranks) :]  # they are in the order of their energy
                    owner_R[gone], self.kept_LRi[layer, gone], energy_R[gone] = task, 0.0, 0.0
        self.down_LRi.zero_()

    @torch.no_grad()
    def end(self, task: int, covariance_Lii: Tensor) -> None:
        """Rotate the task's update so that what it does to inputs of this covariance sits in few columns; keep it."""
        for layer, covariance_ii in enumerate(covariance_Lii):
            columns = self.columns(task)[layer]
            up_oC, down_Ci = self.up_LoR[layer][:, columns].double(), self.down_LRi[layer][columns].double()
            up_oC, down_Ci, energy_C = rotated(up_oC, down_Ci, covariance_ii)
            self.up_LoR[layer, :, columns] = up_oC.float()
            self.kept_LRi[layer, columns], self.energy_LR[layer, columns] = down_Ci.float(), energy_C.float()
        self.down_LRi.zero_()


_NAMES: tuple[Matrix, Matrix] = ("qkv", "fc1")


class FullUpdates(nn.Module):
    """Pools for qkv and for the first layer of the MLP, and the moments of what enters these."""

    def __init__(self, backbone: Backbone, rank: int | None, generator: torch.Generator) -> None:
        """Draw A of both; rank: columns of B; None, or more than there are outputs: as many as outputs."""
        super().__init__()
        sizes = [tuple(matrix(backbone, 0, name).shape) for name in _NAMES]
        made = [UpdatePool(backbone.depth, o, i, min(rank or o, o), generator) for o, i in sizes]
        self.qkv, self.fc1 = made
        self.qkv_inputs, self.fc1_inputs = TokenMoments(backbone, "k"), TokenMoments(backbone, "fc1")

    @property
    def pools(self) -> tuple[UpdatePool, UpdatePool]:
        """Both pools."""
        return self.qkv, self.fc1

    def inserts(self, backbone: Backbone, task: int | None) -> list[Insert]:
        """Weights with the updates of all tasks; `task`: the one whose rows are trained, None leaves them out."""
        made: list[Insert] = []
        for name, pool in zip(_NAMES, self.pools, strict=True):
            for layer, weight_oi in enumerate(pool.kept(backbone, name)):
                whole_oi = weight_oi if task is None else weight_oi + pool.trained(layer, task)
                made.append(Weight(layer, name, whole_oi))
        return made

    def probes(self) -> list[Insert]:
        """Changes that change nothing and add what enters both layers to the moments."""
        return [*self.qkv_inputs.inserts(), *self.fc1_inputs.inserts()]

    def reset(self) -> None:
        """Start the moments anew."""
        self.qkv_inputs.reset()
        self.fc1_inputs.reset()

    def begin(self, task: int) -> None:
        """Hand columns to a task, as `UpdatePool.begin`."""
        for pool in self.pools:
            pool.begin(task)

    def end(self, task: int) -> None:
        """Keep the task's updates, rotated by the moments."""
        self.qkv.end(task, self.qkv_inputs.covariance_LDD)
        self.fc1.end(task, self.fc1_inputs.covariance_LDD)


def rotated(up_oC: Tensor, down_Ci: Tensor, covariance_ii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product with orthonormal columns in the order of their energy, and the energies [C]."""
    basis_oC = torch.linalg.qr(up_oC).Q
    change_Ci = basis_oC.T @ up_oC @ down_Ci
    energy_C, turn_CC = torch.linalg.eigh(change_Ci @ covariance_ii @ change_Ci.T)
    turn_CC = turn_CC.flip(1)
    return basis_oC @ turn_CC, turn_CC.T @ change_Ci, energy_C.flip(0).clamp_min(0)


def kept_ranks(energies: list[Tensor], limit: int) -> list[int]:
    """Numbers of columns that hold the largest common share of each task's energy and are at most `limit` together.

    energies: of the columns of each task, the largest first. Every task keeps one at least.
    """
    ranks = []
    grid_G = 1 - _STEP * torch.arange(1, round(1 / _STEP) + 1, dtype=torch.float64)
    for energy_C in energies:
        energy_C = energy_C.double().cpu()
        total = energy_C.sum()
        held_C = energy_C.cumsum(0) / total if total > 0 else torch.ones_like(energy_C)
        ranks.append((torch.searchsorted(held_C, grid_G) + 1).clamp_max(len(energy_C)))
    ranks_TG = torch.stack(ranks)
    fits_G = ranks_TG.sum(0) <= max(limit, len(energies))
    first = int(fits_G.int().argmax()) if bool(fits_G.any()) else len(grid_G) - 1
    return [int(rank) for rank in ranks_TG[:, first]]
