"""Mistakes of feature groups that a config shows as well as the features built from it."""

from collections import Counter
from collections.abc import Iterable, Iterator

from tzrec_core.errors import did_you_mean


def member_problems(where: str, names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """Names that are not features, and features that stand in a group more than once.

    Args:
        where: the group, as messages name it.
        names: its `feature_names`.
        known: names of all features.
    """
    known = set(known)
    for name, count in Counter(names).items():
        if name not in known:
            yield f"{where}: {name!r} is not a feature.{did_you_mean(name, sorted(known))}"
        elif count > 1:
            yield f"{where} lists {name!r} {count} times. Remove all but one."


def data_group_problems(where: str, data_groups: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A group that mixes features of several data groups.

    Args:
        where: the group, as messages name it.
        data_groups: (feature, its data group).
    """
    names: dict[str, list[str]] = {}
    for name, group in data_groups:
        names.setdefault(group, []).append(name)
    if len(names) > 1:
        lists = " and ".join(f"{group}: {', '.join(members)}" for group, members in sorted(names.items()))
        yield (
            f"{where} mixes features of two data groups, {lists}. A group reads one: split it, or list the missing "
            "columns in the sampler's attr_fields."
        )
