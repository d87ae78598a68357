"""What an attack says of a protection, in plain sentences."""

from fastue.protocol.summary import ORACLE, Setting, settings

LIMIT = 0.5  # of what clean pictures teach above chance: who gets more has undone the protection


def holds(rows: list[dict], num_classes: int) -> bool | None:
    """Whether no victim learns more than LIMIT of what clean pictures teach above chance, the worst
    seed and setting counting, without those that had the test pictures (ORACLE). None where that
    cannot be said."""
    worst = _worst(settings(rows, num_classes))
    if worst is None or worst.share is None:
        return None
    if worst.share > LIMIT:
        return False
    return None if _fooled_by_anything(worst) else True


def verdict(rows: list[dict], num_classes: int) -> str:
    """Whether the protection holds, and the highest share that any victim got of what clean pictures
    teach, over settings and seeds, beside chance and clean training of the same victim."""
    found = settings(rows, num_classes)
    worst = _worst(found)
    if worst is None:
        return "No victim was trained on the protected pictures."
    others = [one for one in found if one.reached is not None and not one.authorized]
    details = _details(worst, len(others))
    if worst.clean is None:
        return f"{details} Without the clean control this says little: pass --source."
    if worst.share is None:
        return (
            f"No victim learns enough of clean pictures to judge by ({worst.clean:.1f} %, chance "
            f"{worst.chance:.1f} %): train longer or with more pictures. {details}"
        )
    only_plain = all(one.countermeasure == "none" for one in found)
    parts = [*_let_in(found), _headline(worst, only_plain), details]
    if worst.aux is not None:
        parts.append(f"It had {_aux(worst)}.")
    oracle = next((one for one in found if one.aux == ORACLE and one.reached is not None), None)
    if oracle is not None and oracle is not worst:
        parts.append(
            f"{_sentence(oracle.countermeasure)} with the test pictures themselves (ORACLE) "
            f"reaches {oracle.reached:.1f} %."
        )
    return " ".join(parts)


def _worst(found: list[Setting]) -> Setting | None:
    """ORACLE counts only where there is nothing else; it comes last among the settings. Who is
    authorized may learn."""
    return next((one for one in found if one.reached is not None and not one.authorized), None)


def _let_in(found: list[Setting]) -> list[str]:
    """What is left to who is authorized, and what the same network has without that."""
    ours = [one for one in found if one.authorized and one.kept is not None and one.clean]
    if not ours:
        return []
    one = min(ours, key=lambda one: one.kept - one.clean)
    text = f"Who is authorized ({one.arch}) keeps {one.kept:.1f} of {one.clean:.1f} points"
    if "protected" in one.plain:
        without = one.plain["protected"]["stopped_max"]
        text += f"; the same network without that reaches {without:.1f}"
    return [text + "."]


def _headline(worst: Setting, only_plain: bool) -> str:
    points = f"{worst.reached:.1f} of {worst.clean:.1f} points"
    if worst.share > LIMIT:
        how = "Plain training" if worst.countermeasure == "none" else worst.countermeasure
        verb = "reaches" if worst.countermeasure == "none" else "restores"
        return f"{_sentence(how)} {verb} {points}: this protection does not hold."
    if _fooled_by_anything(worst):
        return (
            "Random noise of the same budget does half of what this protection does, "
            "so this victim is too weak to judge by."
        )
    at_worst = f"at worst {worst.arch}{worst.after} reaches {points}."
    if only_plain:
        return (
            f"Holds against plain training: {at_worst} "
            "No countermeasure was tried: pass --suite quick."
        )
    return f"Holds against what was tried: {at_worst}"


def _fooled_by_anything(worst: Setting) -> bool:
    """Under random noise the victim loses half of the points that the protection costs it."""
    if worst.random is None or "clean" not in worst.arms:
        return False
    clean = worst.arms["clean"]["stopped_mean"]
    lost = clean - worst.reached
    return lost > 0 and worst.random < clean - 0.5 * lost


def _details(worst: Setting, count: int) -> str:
    seeds = worst.arms["protected"]["seeds"]
    text = (
        f"Worst of {_number(count, 'setting')} and {_number(seeds, 'seed')}: {worst.arch} trained "
        f"on the protected files{worst.after} and stopped at its best epoch reaches "
        f"{worst.reached:.1f} % on clean pictures (chance {worst.chance:.1f} %"
    )
    if "clean" in worst.plain:
        text += f", clean training {worst.plain['clean']['stopped_mean']:.1f} %"
    if worst.after and "clean" in worst.arms:
        text += f", clean training{worst.after} {worst.arms['clean']['stopped_mean']:.1f} %"
    return text + ")."


def _aux(setting: Setting) -> str:
    if setting.aux == ORACLE:
        return "the test pictures themselves, which no adversary has (ORACLE)"
    return _number(setting.aux, "clean picture")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count > 1 else ''}"
