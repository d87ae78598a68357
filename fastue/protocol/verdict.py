"""What an attack says of a protection, in one plain sentence."""

from fastue.protocol.arms import CONTROLS
from fastue.protocol.summary import settings


def verdict(rows: list[dict], num_classes: int) -> str:
    """The highest accuracy any setting reached on the protected files, beside chance and beside
    clean training of the same victim under the same countermeasure."""
    protected = {name: arms for name, arms in settings(rows).items() if "protected" in arms}
    if not protected:
        return "No victim was trained on the protected pictures."
    (countermeasure, arch), worst = next(iter(protected.items()))
    after = "" if countermeasure == "none" else f" after {countermeasure}"
    reached = worst["protected"]["final_mean"]
    text = (
        f"Worst case over {len(protected)} setting{'s' if len(protected) > 1 else ''}: "
        f"{arch} trained on the protected files{after} reaches {reached:.1f} % on clean pictures "
        f"(chance {100 / num_classes:.1f} %"
    )
    if "clean" not in worst:
        return text + "). Without the clean control this says little: pass --source."
    clean = worst["clean"]["final_mean"]
    lost = clean - reached
    text += f", clean training{after} {clean:.1f} %), {lost:.1f} points lost"
    random = [worst[arm]["final_mean"] for arm in CONTROLS if arm in worst]
    if random and min(random) < clean - 0.5 * lost:
        text += (
            "; random noise of the same budget does half of that, "
            "so this victim is too weak to judge by"
        )
    return text + "."
