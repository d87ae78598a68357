"""What an attack says of a protection, in one plain sentence."""

from fastue.protocol.arms import CONTROLS
from fastue.protocol.summary import settings


def verdict(rows: list[dict], num_classes: int) -> str:
    """The highest accuracy that any victim reached on the protected files at its best epoch, over
    settings and seeds, beside chance and beside clean training of the same victim under the same
    countermeasure, whose mean over seeds counts."""
    protected = {name: arms for name, arms in settings(rows).items() if "protected" in arms}
    if not protected:
        return "No victim was trained on the protected pictures."
    (countermeasure, arch), worst = next(iter(protected.items()))
    after = "" if countermeasure == "none" else f" after {countermeasure}"
    reached = worst["protected"]["stopped_max"]
    seeds = worst["protected"]["seeds"]
    text = (
        f"Worst case over {_number(len(protected), 'setting')} and {_number(seeds, 'seed')}: "
        f"{arch} trained on the protected files{after} and stopped at its best epoch reaches "
        f"{reached:.1f} % on clean pictures (chance {100 / num_classes:.1f} %"
    )
    if "clean" not in worst:
        return text + "). Without the clean control this says little: pass --source."
    clean = worst["clean"]["stopped_mean"]
    lost = clean - reached
    text += f", clean training{after} {clean:.1f} %), {lost:.1f} points lost"
    random = [worst[arm]["stopped_mean"] for arm in CONTROLS if arm in worst]
    if random and min(random) < clean - 0.5 * lost:
        text += (
            "; random noise of the same budget does half of that, "
            "so this victim is too weak to judge by"
        )
    return text + "."


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count > 1 else ''}"
