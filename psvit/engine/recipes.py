"""Named recipes of classifiers, and the one that fits a training. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from psvit.arch.model_config import AUTO
from psvit.arch.variants import SMALL
from psvit.data.data_config import Augment
from psvit.engine.train_config import Recipe, deit, light
from psvit.errors import UserError

MANY = 200
"""From this many epochs on a training is as long as DeiT's."""

EPOCHS = 20
"""Epochs if none are given and the recipe is auto."""


def photos() -> Recipe:
    """For larger images and up to 200 epochs: random crops, stochastic depth, no mixup (not yet measured).

    ``psvit train --data FOLDER --epochs 50``
    """
    crops = Augment(scale=(0.7, 1.0), color_jitter=0.0, interpolation="bilinear")  # no shift of some pixels
    return replace(light(), epochs=EPOCHS, drop_path=0.05, augment=crops)


RECIPES: dict[str, Callable[[], Recipe]] = {"light": light, "photos": photos, "deit": deit}


def fitting(epochs: int | None, side: int) -> tuple[str, str]:
    """The recipe that fits a training, and why.

    Args:
        epochs: of the training; None for those of the recipe.
        side: larger side of the images, in pixels.

    Returns:
        Its name in `RECIPES`, and the reason in words.
    """
    epochs = epochs or EPOCHS
    why = f"images of {side} pixels, {epochs} epoch{'s' * (epochs > 1)}"
    if side > SMALL:
        return "deit" if epochs >= MANY else "photos", why
    return "light", why


def recipe_named(name: str, epochs: int | None, side: int) -> Recipe:
    """The recipe of this name; for auto the fitting one, arguments as in `fitting`.

    Recipes that shift are for 28 pixels, and shift by a fourteenth of the side: by 1 of 8 pixels, by 2 of 28.

    Raises:
        UserError: there is no recipe of this name.
    """
    if name not in (AUTO, *RECIPES):
        raise UserError(f"there is no recipe {name!r}: the recipes are {', '.join([AUTO, *RECIPES])}")
    recipe = RECIPES[fitting(epochs, side)[0] if name == AUTO else name]()
    if name == AUTO:
        recipe = replace(recipe, epochs=epochs or EPOCHS)
    if recipe.augment.shift:
        recipe = replace(recipe, augment=replace(recipe.augment, shift=max(1, round(side / 14))))
    return recipe
